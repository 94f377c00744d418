//! The use cases: the only place where rows and core meet. Edges call these and nothing below.
//!
//! What happens often (submit, claim, what agents say of leases) goes through the committer and shares transactions;
//! what happens seldom is a [`work::Work`] of its own. Effects follow a commit in [`App::publish`] only.

mod agents;
mod assign;
mod audit;
mod authority;
mod beats;
mod builds;
pub mod caller;
mod census;
mod claim;
mod commit;
mod control;
mod dispatch;
mod enrol;
pub mod error;
mod explain;
mod facts;
mod gather;
pub mod grants;
mod hello;
mod names;
mod projects;
mod reaper;
mod retention;
mod secrets;
mod sessions;
mod submit;
mod tokens;
mod trace;
mod uses;
pub mod views;
mod work;

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use kiln_core::{secret::Secret, spec::BuildSpec, trace::Trace};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::SharedClock,
    live::Live,
    metrics::Metrics,
    recent::Recent,
    secrets::Keys,
    store::{Census, SharedStore, jobs::Effects},
    wake::{Subscription, Topic, Wake},
};

pub use authority::Certified;
pub use caller::{Caller, Principal};
pub use error::{Error, Result};
pub use grants::Given;
pub use retention::Expired;
pub use views::*;

/// Durations of the session protocol.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two heartbeats of an agent.
    pub heartbeat: Duration,
    /// Silence after which an agent is given up.
    pub grace: Duration,
    /// Between two sweeps.
    pub sweep: Duration,
    /// How long the certificate of an agent is good.
    pub certificate: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            grace: Duration::from_mins(1),
            sweep: Duration::from_secs(5),
            certificate: Duration::from_hours(90 * 24),
        }
    }
}

/// What a caller asks to be built.
#[derive(Debug, Clone)]
pub struct Submit {
    pub project: String,
    pub key: Option<String>,
    pub spec: BuildSpec,
    /// Given to the jobs of this build alone.
    pub secrets: Vec<Secret>,
    pub submitter: String,
    /// Where the caller's part of a trace ends.
    pub trace: Option<Trace>,
}

/// The use cases over a store, a wake and a clock, and who uses them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct App(Arc<Inner>, audit::Actor);

#[derive(Debug)]
struct Inner {
    store: SharedStore,
    wake: Arc<dyn Wake>,
    clock: SharedClock,
    timing: Live<Timing>,
    metrics: Metrics,
    census: Recent<Arc<Census>>,
    names: names::Names,
    committer: commit::Committer,
    beats: beats::Beats,
    facts: gather::Gather<facts::Look>,
    hellos: gather::Gather<hello::Greeting>,
    dispatch: dispatch::Dispatch,
    reaper: reaper::Reaper,
    uses: uses::Uses,
    keys: OnceLock<Keys>,
}

impl App {
    /// Nothing is committed before [`App::start`].
    pub fn new(
        store: SharedStore,
        wake: Arc<dyn Wake>,
        clock: SharedClock,
        timing: impl Into<Live<Timing>>,
        metrics: Metrics,
    ) -> Self {
        let inner = Inner {
            store,
            wake,
            clock,
            timing: timing.into(),
            metrics,
            census: Recent::default(),
            names: names::Names::default(),
            committer: commit::Committer::default(),
            beats: beats::Beats::default(),
            facts: gather::Gather::default(),
            hellos: gather::Gather::default(),
            dispatch: dispatch::Dispatch::default(),
            reaper: reaper::Reaper::default(),
            uses: uses::Uses::default(),
            keys: OnceLock::new(),
        };
        Self(Arc::new(inner), audit::Actor::default())
    }

    /// Starts the tasks that commit and dispatch, with one committer. Cancelled, they answer what was asked and end.
    pub fn start(&self, tracker: &TaskTracker, shutdown: &CancellationToken) {
        self.start_with(tracker, shutdown, 1);
    }

    /// As `start`, with as many committers as the database takes writers at once.
    pub fn start_with(
        &self,
        tracker: &TaskTracker,
        shutdown: &CancellationToken,
        committers: usize,
    ) {
        self.0.committer.start(self, tracker, shutdown, committers.max(1));
        self.0.beats.start(self, tracker, shutdown);
        self.0.facts.start(self, tracker, shutdown);
        self.0.hellos.start(self, tracker, shutdown);
        tracker.spawn(dispatch::run(self.clone(), shutdown.clone()));
    }

    pub fn timing(&self) -> Timing {
        *self.0.timing.get()
    }

    /// Other durations from now on.
    pub(crate) fn set_timing(&self, timing: Timing) {
        self.0.timing.set(timing);
    }

    pub fn clock(&self) -> &SharedClock {
        &self.0.clock
    }

    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub fn subscribe(&self, topics: &[Topic]) -> Subscription {
        self.0.wake.subscribe(topics)
    }

    /// What follows a commit. All of it can be lost.
    fn publish(&self, effects: Effects) {
        self.0.metrics.moved(&effects.moved);
        trace::moved(&effects.moved, self.0.clock.now());
        let mut topics: Vec<Topic> = effects.builds.iter().copied().map(Topic::Build).collect();
        topics.extend(effects.agents.iter().copied().map(Topic::Agent));
        if !effects.openings.is_empty() || !effects.freed.is_empty() {
            // Here the dispatcher knows which sessions to wake, and wakes no other.
            self.0.wake.tell_others(&[Topic::Queue]);
        }
        self.0.dispatch.follow(self, effects);
        if !topics.is_empty() {
            self.0.wake.publish(&topics);
        }
    }
}
