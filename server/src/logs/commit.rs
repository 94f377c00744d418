//! Group commit of the index: what all logs appended meanwhile shares one transaction.
//!
//! A lone line is committed at once. Behind it the next group waits until [`PACE`] is over or [`ENOUGH`] bytes are
//! there, so that a hundred chatty jobs cost fifty transactions a second, and a fast one a transaction a segment.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Error, Result,
    index::{Append, Appended, LogIndex},
};
use crate::{clock::SharedClock, store};

const PACE: Duration = Duration::from_millis(20);
const ENOUGH: u64 = 512 << 10;
/// One transaction must not hold the writer for long.
const GROUP: usize = 128;

type Answer = store::Result<Appended>;

struct Request {
    append: Append,
    answer: oneshot::Sender<Answer>,
}

/// Hands appends to the task that commits them.
#[derive(Debug, Clone)]
pub(super) struct Committer {
    queue: mpsc::Sender<Request>,
}

impl Committer {
    pub(super) fn start(
        index: Arc<dyn LogIndex>,
        clock: SharedClock,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (queue, requests) = mpsc::channel(GROUP);
        tasks.spawn(run(index, clock, requests, stop));
        Self { queue }
    }

    /// Returns when the append is committed, or refused.
    pub(super) async fn commit(&self, append: Append) -> Result<Appended> {
        const STOPS: Error = Error::Busy("the server is shutting down; send it again");
        let (answer, answered) = oneshot::channel();
        self.queue.send(Request { append, answer }).await.map_err(|_| STOPS)?;
        Ok(answered.await.map_err(|_| STOPS)??)
    }
}

async fn run(
    index: Arc<dyn LogIndex>,
    clock: SharedClock,
    mut requests: mpsc::Receiver<Request>,
    stop: CancellationToken,
) {
    let mut free_at = Instant::now();
    loop {
        let first = tokio::select! {
            first = requests.recv() => first,
            () = stop.cancelled() => {
                requests.close();
                requests.recv().await
            }
        };
        let Some(first) = first else { return };
        let group = gather(first, &mut requests, free_at).await;
        commit(index.as_ref(), clock.now(), group).await;
        free_at = Instant::now() + PACE;
    }
}

async fn gather(
    first: Request,
    requests: &mut mpsc::Receiver<Request>,
    free_at: Instant,
) -> Vec<Request> {
    let mut bytes = first.append.length;
    let mut group = vec![first];
    while bytes < ENOUGH && group.len() < GROUP {
        let Ok(Some(next)) = tokio::time::timeout_at(free_at, requests.recv()).await else { break };
        bytes += next.append.length;
        group.push(next);
    }
    while group.len() < GROUP {
        let Ok(next) = requests.try_recv() else { break };
        group.push(next);
    }
    group
}

/// On an error the members go one by one, so that one bad row does not take the others with it.
async fn commit(index: &dyn LogIndex, now: kiln_core::Millis, group: Vec<Request>) {
    let (appends, answers): (Vec<_>, Vec<_>) =
        group.into_iter().map(|request| (request.append, request.answer)).unzip();
    if let Ok(results) = index.append(&appends, now).await {
        for (answer, result) in answers.into_iter().zip(results) {
            let _gone = answer.send(Ok(result));
        }
        return;
    }
    for (append, answer) in appends.into_iter().zip(answers) {
        let result = index.append(&[append], now).await;
        let one = result.and_then(|mut one| one.pop().ok_or(store::Error::Conflict));
        let _gone = answer.send(one);
    }
}
