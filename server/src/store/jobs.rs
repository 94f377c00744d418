//! The one place in which job rows change, many at once.
//!
//! [`apply`] locks the builds of a batch, turns their jobs through the core, lets dependents follow, and writes jobs,
//! leases, counts and events in a fixed number of statements, whatever the size of the batch. It knows nothing of who
//! asks and wakes nobody: what follows from a commit is returned as [`Effects`].

mod batch;
mod cascade;
mod repair;
mod retry;
mod save;

use std::collections::BTreeSet;

use kiln_core::{
    Millis,
    id::{AgentId, BuildId, ClassId, JobId},
    job::{Event, Rejected},
    session::Report,
    trace::Trace,
};

use super::{LeaseRow, Result, Tx};
use batch::Batch;

pub use repair::repair;
pub use retry::{Retry, plan_retry};
pub use save::rebalance;

/// Something that happens to a job.
#[derive(Debug, Clone)]
pub struct Transition {
    pub build: BuildId,
    pub job: JobId,
    pub event: Event,
    /// What a `Lease` gives; its attempt is filled in.
    pub lease: Option<LeaseRow>,
    /// What a `Finish` says beside its outcome.
    pub report: Option<Report>,
    /// Why, where it is not the plain next step.
    pub reason: String,
}

impl Transition {
    pub fn new(build: BuildId, job: JobId, event: Event) -> Self {
        Self { build, job, event, lease: None, report: None, reason: String::new() }
    }

    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }
}

/// Why a transition changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the job does not exist")]
    Missing,
    /// Its group, or the limit or a pause of its project, keeps it from being leased.
    #[error("the job is barred by its group or its project")]
    Barred,
    #[error(transparent)]
    Job(#[from] Rejected),
}

/// A job that became claimable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    pub class: ClassId,
    pub affinity: String,
    pub not_before: Millis,
}

/// A lease as it is now, and when it or its job came to where it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    pub lease: LeaseRow,
    pub since: Millis,
    /// Its build's place in a trace, and the name of its job, where there is a trace.
    pub traced: Option<(Trace, String)>,
}

/// What follows from a commit. Each can be lost: the rows are the truth.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// Builds with new events.
    pub builds: BTreeSet<BuildId>,
    /// Agents of which a lease was ended or flagged by someone else, or that are gone.
    pub agents: BTreeSet<AgentId>,
    /// Slots that became free: the agent and its backend.
    pub freed: Vec<(AgentId, String)>,
    /// Affinities and the agents that have their caches warm now.
    pub warm: Vec<(String, AgentId)>,
    pub openings: Vec<Opening>,
    /// Leases that began, started or ended.
    pub moved: Vec<Moved>,
}

impl Effects {
    pub fn merge(&mut self, other: Self) {
        self.builds.extend(other.builds);
        self.agents.extend(other.agents);
        self.freed.extend(other.freed);
        self.warm.extend(other.warm);
        self.openings.extend(other.openings);
        self.moved.extend(other.moved);
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Applied {
    /// One for each transition, in its order.
    pub results: Vec<Result<(), Refused>>,
    /// Leases as they were inserted.
    pub given: Vec<LeaseRow>,
    pub effects: Effects,
}

/// Applies transitions in their order; leases come last, when the locks that they need are held.
///
/// Errors with `Conflict` where a row changed under it: the transaction must then be dropped and done again.
pub async fn apply(tx: &mut dyn Tx, transitions: &[Transition], at: Millis) -> Result<Applied> {
    let mut batch = Batch::load(tx, transitions, at).await?;
    let is_lease = |transition: &Transition| matches!(transition.event, Event::Lease(_));
    let mut results = vec![Ok(()); transitions.len()];
    for (index, transition) in transitions.iter().enumerate().filter(|(_, t)| !is_lease(t)) {
        results[index] = batch.turn(transition);
    }
    cascade::follow(&mut batch, tx).await?;
    batch.lock_groups(tx, transitions).await?;
    batch.lock_projects(tx, transitions).await?;
    for (index, transition) in transitions.iter().enumerate().filter(|(_, t)| is_lease(t)) {
        results[index] = batch.give(transition);
    }
    let given = batch.given.clone();
    let effects = batch.save(tx).await?;
    Ok(Applied { results, given, effects })
}
