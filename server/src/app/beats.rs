//! Heartbeats of all sessions of this replica, as many as wait in one statement.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use kiln_core::{agent::Load, id::SessionId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{App, Error, Result};

/// Heartbeats of one statement.
const GROUP: usize = 1_000;
/// Heartbeats that wait before sessions wait.
const QUEUE: usize = 4_096;
const STOPPING: Error = Error::Busy("the server is stopping");

#[derive(Debug)]
struct Beat {
    session: SessionId,
    load: Load,
    answer: oneshot::Sender<Result<bool>>,
}

#[derive(Debug, Default)]
pub(super) struct Beats {
    queue: OnceLock<mpsc::Sender<Beat>>,
    /// A statement failed since the reaper last asked: silence in the rows may be ours.
    failed: AtomicBool,
}

impl Beats {
    pub(super) fn start(&self, app: &App, tracker: &TaskTracker, shutdown: &CancellationToken) {
        let mut receiver = None;
        self.queue.get_or_init(|| {
            let (sender, queue) = mpsc::channel(QUEUE);
            receiver = Some(queue);
            sender
        });
        if let Some(queue) = receiver {
            tracker.spawn(run(app.clone(), queue, shutdown.clone()));
        }
    }

    pub(super) async fn beat(&self, session: SessionId, load: Load) -> Result<bool> {
        let queue = self.queue.get().ok_or(Error::Busy("the server is starting"))?;
        let (answer, answered) = oneshot::channel();
        queue.send(Beat { session, load, answer }).await.map_err(|_| STOPPING)?;
        answered.await.map_err(|_| STOPPING)?
    }

    /// Whether heartbeats were lost since the last call.
    pub(super) fn take_failed(&self) -> bool {
        self.failed.swap(false, Ordering::Relaxed)
    }
}

async fn run(app: App, mut queue: mpsc::Receiver<Beat>, shutdown: CancellationToken) {
    let mut waiting = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            count = queue.recv_many(&mut waiting, GROUP) => if count == 0 { return },
        }
        let loads: BTreeMap<SessionId, Load> =
            waiting.iter().map(|beat: &Beat| (beat.session, beat.load)).collect();
        let loads: Vec<_> = loads.into_iter().collect();
        let open = app.0.store.beat(&loads, app.0.clock.now()).await;
        if let Err(error) = &open {
            tracing::warn!(error = %error, "heartbeats could not be stored");
            app.0.beats.failed.store(true, Ordering::Relaxed);
        }
        let open: Option<BTreeSet<SessionId>> = open.ok().map(|open| open.into_iter().collect());
        for beat in waiting.drain(..) {
            let answer = match &open {
                Some(open) => Ok(open.contains(&beat.session)),
                None => Err(Error::Busy("the database failed; the heartbeat is sent again")),
            };
            // A session may have ended meanwhile.
            let _ = beat.answer.send(answer);
        }
    }
}
