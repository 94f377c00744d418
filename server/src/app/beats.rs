//! Heartbeats of all sessions of this replica, as many as come within a moment in one statement.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use kiln_core::{agent::Load, id::SessionId};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    App, Result,
    gather::{Gather, Question},
};

/// The pause between two statements grows with the sessions: a thousand idle agents are one commit a second.
const PAUSE_OF_A_SESSION: Duration = Duration::from_millis(1);
/// The pause is at most this part of the time between two heartbeats of an agent.
const PART_OF_A_HEARTBEAT: u32 = 10;

#[derive(Debug)]
struct Beat {
    session: SessionId,
    load: Load,
}

#[derive(Debug, Default)]
pub(super) struct Beats {
    gather: Gather<Beat>,
    /// A statement failed since the reaper last asked: silence in the rows may be ours.
    failed: AtomicBool,
}

impl Beats {
    pub(super) fn start(&self, app: &App, tracker: &TaskTracker, shutdown: &CancellationToken) {
        self.gather.start(app, tracker, shutdown);
    }

    pub(super) async fn beat(&self, session: SessionId, load: Load) -> Result<bool> {
        self.gather.ask(Beat { session, load }).await
    }

    /// Whether heartbeats were lost since the last call.
    pub(super) fn take_failed(&self) -> bool {
        self.failed.swap(false, Ordering::Relaxed)
    }
}

impl Question for Beat {
    /// Its session is open.
    type Answer = bool;
    const MOST: usize = 1_000;

    async fn answer(app: &App, beats: &[Self]) -> Result<Vec<Result<bool>>> {
        let loads: BTreeMap<_, _> = beats.iter().map(|beat| (beat.session, beat.load)).collect();
        let loads: Vec<_> = loads.into_iter().collect();
        let open = app.0.store.beat(&loads, app.0.clock.now()).await.inspect_err(|_| {
            app.0.beats.failed.store(true, Ordering::Relaxed);
        })?;
        let open: BTreeSet<SessionId> = open.into_iter().collect();
        Ok(beats.iter().map(|beat| Ok(open.contains(&beat.session))).collect())
    }

    fn pause(app: &App) -> Duration {
        let sessions = u32::try_from(app.0.dispatch.open_sessions()).unwrap_or(u32::MAX);
        let longest = app.timing().heartbeat / PART_OF_A_HEARTBEAT;
        PAUSE_OF_A_SESSION.saturating_mul(sessions).min(longest)
    }
}
