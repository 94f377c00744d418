//! What many sessions ask at the same moment, answered together: as many as wait share one read or one transaction.
//!
//! Whoever asks alone is answered at once. What can't be answered together because of a single member is done again one
//! by one; a database that fails is nobody's fault in particular, and told to all.

use std::{future::Future, sync::OnceLock, time::Duration};

use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{App, Error, Result};
use crate::store;

/// Questions that wait before who asks waits.
const QUEUE: usize = 4_096;
const STOPPING: Error = Error::Busy("the server is stopping");
const FAILED: Error = Error::Busy("the database failed; try again");

/// A kind of question.
pub(super) trait Question: Sized + Send + Sync + 'static {
    type Answer: Send + 'static;
    /// Questions that are answered together at most.
    const MOST: usize;

    /// One answer for each question, in their order.
    fn answer(
        app: &App,
        questions: &[Self],
    ) -> impl Future<Output = Result<Vec<Result<Self::Answer>>>> + Send;

    /// How long what comes next is gathered after an answer.
    fn pause(_: &App) -> Duration {
        Duration::ZERO
    }
}

type Asked<Q> = (Q, oneshot::Sender<Result<<Q as Question>::Answer>>);

/// The queue of a kind of question.
#[derive(Debug)]
pub(super) struct Gather<Q: Question> {
    queue: OnceLock<mpsc::Sender<Asked<Q>>>,
}

impl<Q: Question> Default for Gather<Q> {
    fn default() -> Self {
        Self { queue: OnceLock::new() }
    }
}

impl<Q: Question> Gather<Q> {
    pub(super) fn start(&self, app: &App, tracker: &TaskTracker, shutdown: &CancellationToken) {
        let (sender, queue) = mpsc::channel(QUEUE);
        if self.queue.set(sender).is_ok() {
            tracker.spawn(run(app.clone(), queue, shutdown.clone()));
        }
    }

    pub(super) async fn ask(&self, question: Q) -> Result<Q::Answer> {
        let queue = self.queue.get().ok_or(Error::Busy("the server is starting"))?;
        let (answer, answered) = oneshot::channel();
        queue.send((question, answer)).await.map_err(|_| STOPPING)?;
        answered.await.map_err(|_| STOPPING)?
    }
}

async fn run<Q: Question>(
    app: App,
    mut queue: mpsc::Receiver<Asked<Q>>,
    shutdown: CancellationToken,
) {
    let mut waiting = vec![];
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            count = queue.recv_many(&mut waiting, Q::MOST) => if count == 0 { return },
        }
        let (questions, askers): (Vec<Q>, Vec<_>) = waiting.drain(..).unzip();
        for (asker, answer) in askers.into_iter().zip(answer(&app, &questions).await) {
            // Who asked may have ended meanwhile.
            let _ = asker.send(answer);
        }
        let pause = Q::pause(&app);
        if !pause.is_zero() {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

async fn answer<Q: Question>(app: &App, questions: &[Q]) -> Vec<Result<Q::Answer>> {
    let count = questions.len();
    match Q::answer(app, questions).await {
        Ok(answers) => answers,
        Err(error) if count == 1 => vec![Err(error)],
        Err(error @ Error::Store(store::Error::Database { .. })) => {
            tracing::warn!(%error, count, "nothing of a group could be done");
            (0..count).map(|_| Err(FAILED)).collect()
        }
        Err(error) => {
            tracing::debug!(%error, count, "a group is done one by one");
            let mut answers = Vec::with_capacity(count);
            for question in questions {
                let alone = Q::answer(app, std::slice::from_ref(question)).await;
                answers.push(alone.and_then(|mut one| one.pop().unwrap_or(Err(STOPPING))));
            }
            answers
        }
    }
}
