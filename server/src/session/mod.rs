//! One actor for each connected agent: the I/O around [`kiln_core::session::Session`].
//!
//! ```text
//! frames ──▶ machine ──▶ records (concurrent, in order per lease) ──▶ machine
//! claims, facts of the rows, heartbeats ─────────────────────────────▶ machine
//! machine: a set of what is to be said ──▶ words, drawn when the writer has room
//! ```
//!
//! Frames are read while words wait, so a slow reader on the other side piles up nothing here. It decides nothing
//! about jobs: the end of a stream ends no job and closes no lease. It knows neither the wire nor the store.

mod actor;
mod record;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use kiln_core::{
    agent::{Load, Profile},
    id::{AgentId, LeaseId, SessionId},
    secret::Secret,
    session::Report,
    spec::Violation,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    app::{self, App, Given, Hello},
    files::Files,
};
use actor::Actor;
pub(crate) use record::unusable;

/// Who does not say Hello in this time is no agent.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// What an agent says.
#[derive(Debug)]
pub enum Frame {
    /// The first frame, and the version of the protocol that both speak.
    Hello {
        hello: Hello,
        protocol: i32,
    },
    Heartbeat {
        load: Load,
        profile: Option<Profile>,
    },
    Started(LeaseId),
    Refused(LeaseId, String),
    Finished(LeaseId, Report),
}

/// What it is told.
#[derive(Debug)]
pub enum Word {
    Welcome {
        session: SessionId,
        protocol: i32,
        heartbeat: Duration,
        grace: Duration,
        /// Leases that go on; the flag says that a cancel was asked for.
        keep: Vec<(LeaseId, bool)>,
        /// What those of them that have secrets were given.
        secrets: BTreeMap<LeaseId, Vec<Secret>>,
        abandon: Vec<LeaseId>,
    },
    Assign(SessionId, Box<Given>),
    Ack(LeaseId),
    Revoke(LeaseId),
    Abandon(LeaseId),
    Drain,
    Beat,
}

/// Why a session ends before its agent ends it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A frame can't be read, or is out of place.
    #[error("a frame is wrong")]
    Frame(Vec<Violation>),
    /// The versions of the protocol don't meet.
    #[error("{0}")]
    Protocol(String),
    #[error("no Hello arrived in time")]
    Silent,
    /// The rows say that the session is over: another Hello replaced it, or it was silent for too long.
    #[error("the session is closed; say Hello again")]
    Closed,
    #[error("the server shuts down")]
    Shutdown,
    /// The stream broke.
    #[error("the connection was lost")]
    Lost,
    #[error(transparent)]
    App(#[from] app::Error),
}

impl Error {
    fn frame(field: &str, message: &str) -> Self {
        Self::Frame(vec![Violation::new(field, message)])
    }
}

/// Words are said in batches: what is in the machine's set at the moment.
pub type Words = mpsc::Sender<Result<Vec<Word>, Error>>;

/// What a session works with.
#[derive(Debug, Clone)]
pub struct Parts {
    pub app: App,
    pub files: Arc<dyn Files>,
    pub stop: CancellationToken,
}

/// Runs the session of an agent until its stream ends; says why, where the agent did not end it.
pub async fn run(
    parts: Parts,
    agent: AgentId,
    frames: impl Stream<Item = Result<Frame, Error>> + Send + Unpin,
    words: Words,
) {
    let stop = parts.stop.clone();
    let session = session(parts, agent, frames, &words);
    let end = tokio::select! {
        end = session => end,
        () = stop.cancelled() => Err(Error::Shutdown),
    };
    match end {
        Ok(()) | Err(Error::Lost) => tracing::debug!(%agent, "the agent ended its session"),
        Err(error) => {
            tracing::info!(%agent, %error, "the session ends");
            // The agent may be gone, or read nothing: then nobody waits for the reason.
            let _ = words.try_send(Err(error));
        }
    }
}

async fn session(
    parts: Parts,
    agent: AgentId,
    mut frames: impl Stream<Item = Result<Frame, Error>> + Send + Unpin,
    words: &Words,
) -> Result<(), Error> {
    let first = tokio::time::timeout(HELLO_WITHIN, frames.next()).await;
    let (hello, protocol) = match first.map_err(|_| Error::Silent)? {
        Some(frame) => match frame? {
            Frame::Hello { hello, protocol } => (hello, protocol),
            _ => return Err(Error::frame("hello", "the first frame must be Hello")),
        },
        None => return Ok(()),
    };
    // Subscribed before the rows are read, so that no change falls in between.
    let hints = parts.app.subscribe(&[crate::wake::Topic::Agent(agent)]);
    let actor_hello = actor::Greeting::of(&hello);
    let welcome = parts.app.hello(agent, hello).await?;
    let timing = parts.app.timing();
    let kept: Vec<LeaseId> = welcome.reconciled.keep.iter().map(|(lease, _)| *lease).collect();
    let secrets = if kept.is_empty() { BTreeMap::new() } else { parts.app.granted(&kept).await? };
    let word = Word::Welcome {
        session: welcome.session,
        protocol,
        heartbeat: timing.heartbeat,
        grace: timing.grace,
        keep: welcome.reconciled.keep.clone(),
        secrets,
        abandon: welcome.reconciled.abandon.clone(),
    };
    if words.send(Ok(vec![word])).await.is_err() {
        return Ok(());
    }
    tracing::info!(%agent, session = %welcome.session, "the agent is connected");
    Actor::new(parts, agent, &welcome, actor_hello).run(&mut frames, words, hints).await
}
