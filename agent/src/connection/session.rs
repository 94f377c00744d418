//! The session stream: opens it, keeps it alive, opens it again. It decides nothing about leases; what it hears goes to
//! the agent's own task, in order, and that task never waits for it.

use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use kiln_core::{
    Millis,
    agent::{Load, Profile},
    id::{LeaseId, SessionId},
    session::{Assignment, Held},
};
use kiln_proto::{PROTOCOL_MAX, PROTOCOL_MIN, convert};
use kiln_sdk::{
    Error,
    v1::{self, session_request, session_response},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::Server;
use crate::{
    lease::{Frame, Input},
    run::Secret,
};

const FRAMES: usize = 64;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// What only a person can mend is not asked for again at once.
const SLOW: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(20);
/// Heartbeats without an answer until the stream is given up.
const SILENT_BEATS: u32 = 3;
const SLACK: Duration = Duration::from_secs(5);

/// What the agent's own task hears.
#[derive(Debug)]
pub(crate) enum Event {
    /// A session is about to be opened: what shall Hello say?
    Hello(oneshot::Sender<Greeting>),
    Welcome(Box<Opened>),
    Assign {
        session: SessionId,
        assignment: Box<Assignment>,
        secrets: Vec<Secret>,
    },
    /// A lease that can't be understood goes back.
    Refuse(LeaseId, String),
    Input(Input),
}

/// What Hello says of this moment.
#[derive(Debug)]
pub(crate) struct Greeting {
    pub(crate) epoch: i64,
    pub(crate) journal: Vec<(LeaseId, Held)>,
}

/// A session that the server opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) session: SessionId,
    pub(crate) grace_ms: Millis,
    pub(crate) keep: Vec<(LeaseId, bool)>,
    pub(crate) secrets: Vec<(LeaseId, Vec<Secret>)>,
    pub(crate) abandon: Vec<LeaseId>,
    /// Says frames; closed when the session is.
    pub(crate) frames: mpsc::Sender<Frame>,
}

/// What the session task needs.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) server: Server,
    pub(crate) instance: String,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) profile: watch::Receiver<Profile>,
    pub(crate) load: fn(&std::path::Path) -> Load,
    pub(crate) data: std::path::PathBuf,
    pub(crate) stop: CancellationToken,
}

enum Ended {
    /// This process ends.
    Stopped,
    Cut {
        opened: bool,
        why: String,
    },
    Refused(Error),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        let error = Error::from(status);
        match error.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::InvalidArgument => Self::Refused(error),
            code => Self::Cut { opened: false, why: format!("{code:?}: {}", error.message()) },
        }
    }
}

impl Hub {
    /// Holds a session open until the agent stops.
    pub(crate) async fn serve(mut self) {
        let mut bound = BACKOFF_MIN;
        loop {
            let stop = self.stop.clone();
            let mut ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.session() => ended,
            };
            // The stream is gone by now; what it brought was heard before this.
            if self.events.send(Event::Input(Input::Disconnected)).await.is_err() {
                return;
            }
            if matches!(&ended, Ended::Refused(error) if is_eviction(error)) {
                // Where nobody hears it, this process ends anyway.
                let _ = self.events.send(Event::Input(Input::Evicted)).await;
                return;
            }
            if let Ended::Refused(error) = &ended
                && self.server.doubt(error)
            {
                ended = Ended::Cut { opened: false, why: error.message().to_owned() };
            }
            let Some(pause) = pause(&ended, &mut bound) else { return };
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    async fn session(&mut self) -> Ended {
        match self.try_session().await {
            Ok(never) => never,
            Err(ended) => ended,
        }
    }

    async fn try_session(&mut self) -> Result<Ended, Ended> {
        let (ask, answer) = oneshot::channel();
        self.events.send(Event::Hello(ask)).await.map_err(|_| Ended::Stopped)?;
        let greeting = answer.await.map_err(|_| Ended::Stopped)?;
        let (frames, said) = mpsc::channel(FRAMES);
        let (beats, beating) = mpsc::channel(1);
        let outbound = self.outbound(greeting, said, beating);
        let opening = async {
            let mut inbound = self.server.control.agents().session(outbound).await?.into_inner();
            let first = inbound.message().await?;
            Ok::<_, Status>((inbound, first))
        };
        let (mut inbound, first) = timeout(ANSWER, opening)
            .await
            .map_err(|_| cut(false, "the server did not answer Hello in time"))??;
        let Some(session_response::Frame::Welcome(welcome)) = first.and_then(|first| first.frame)
        else {
            return Err(cut(false, "the server's first frame was not Welcome"));
        };
        let heartbeat = Duration::from_millis(u64::try_from(welcome.heartbeat_ms).unwrap_or(0))
            .clamp(Duration::from_millis(20), Duration::from_mins(1));
        let opened = opened(welcome, frames).map_err(|why| cut(false, &why))?;
        tracing::info!(session = %opened.session, "session opened");
        self.hear(Event::Welcome(Box::new(opened))).await?;
        let mut ticks = interval(heartbeat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let silence = heartbeat * SILENT_BEATS + SLACK;
        let mut last_word = Instant::now();
        loop {
            tokio::select! {
                frame = inbound.message() => {
                    let frame = frame.map_err(|status| match Ended::from(status) {
                        Ended::Cut { why, .. } => cut(true, &why),
                        other => other,
                    })?;
                    let frame = frame.ok_or_else(|| cut(true, "the server ended the stream"))?;
                    last_word = Instant::now();
                    if let Some(event) = event(frame) {
                        self.hear(event).await?;
                    }
                }
                _ = ticks.tick() => {
                    if last_word.elapsed() > silence {
                        return Err(cut(true, "the server answers no heartbeat"));
                    }
                    let changed = self.profile.has_changed().unwrap_or(false);
                    let load = (self.load)(&self.data);
                    let profile = changed.then(|| self.profile.borrow().clone());
                    if beats.try_send(convert::heartbeat(load, profile)).is_ok() && changed {
                        self.profile.mark_unchanged();
                    }
                }
            }
        }
    }

    async fn hear(&self, event: Event) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended::Stopped)
    }

    /// Hello, then what is to be said; the frame is in the channel before the call is made.
    fn outbound(
        &mut self,
        greeting: Greeting,
        said: mpsc::Receiver<Frame>,
        beating: mpsc::Receiver<v1::Heartbeat>,
    ) -> impl Stream<Item = v1::SessionRequest> + use<> {
        let journal = greeting.journal.into_iter();
        let hello = v1::Hello {
            instance: self.instance.clone(),
            epoch: greeting.epoch,
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            profile: Some(self.profile.borrow_and_update().clone().into()),
            journal: journal.map(|(lease, held)| convert::journal_entry(lease, held)).collect(),
        };
        let said = ReceiverStream::new(said).map(frame);
        let beats = ReceiverStream::new(beating).map(session_request::Frame::Heartbeat);
        stream::iter([session_request::Frame::Hello(hello)])
            .chain(stream::select(said, beats))
            .map(|frame| v1::SessionRequest { frame: Some(frame) })
    }
}

/// How long to wait before the next session; nothing where there is to be none.
fn pause(ended: &Ended, bound: &mut Duration) -> Option<Duration> {
    match ended {
        Ended::Stopped => None,
        Ended::Cut { opened, why } => {
            *bound = if *opened { BACKOFF_MIN } else { (*bound * 2).min(BACKOFF_MAX) };
            tracing::warn!(why, "no session with the server; trying again");
            Some(jitter(*bound))
        }
        Ended::Refused(error) => {
            let (code, message) = (error.code(), error.message());
            tracing::error!(?code, message, "{}", advice(error));
            Some(SLOW / 2 + jitter(SLOW / 2))
        }
    }
}

fn cut(opened: bool, why: &str) -> Ended {
    Ended::Cut { opened, why: why.to_owned() }
}

/// The server says that this very agent was one, and is one no more.
fn is_eviction(error: &Error) -> bool {
    error.reason() == Some("AGENT_EVICTED")
}

fn advice(error: &Error) -> &str {
    match error.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            "the server does not know this agent; enrol it anew with a fresh token and an empty data folder"
        }
        Code::Unimplemented => {
            "the server speaks no protocol that this agent does; update the older one"
        }
        _ => error.hint().unwrap_or("the server refuses this agent's session"),
    }
}

/// Full jitter, so that agents cut off together do not come back together.
fn jitter(bound: Duration) -> Duration {
    let random = getrandom::u64().unwrap_or(u64::MAX / 2);
    let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(random % micros.saturating_add(1))
}

fn opened(welcome: v1::Welcome, frames: mpsc::Sender<Frame>) -> Result<Opened, String> {
    let bad = |field: &str| format!("the server's Welcome has a bad {field}");
    let mut keep = vec![];
    let mut known = vec![];
    for kept in welcome.keep {
        let lease: LeaseId = kept.lease.parse().map_err(|_| bad("keep"))?;
        keep.push((lease, kept.cancelling));
        known.push((lease, convert::secrets(kept.secrets)));
    }
    let abandon = welcome.abandon.iter().map(|lease| lease.parse());
    Ok(Opened {
        session: welcome.session.parse().map_err(|_| bad("session"))?,
        grace_ms: welcome.grace_ms.max(0),
        keep,
        secrets: known,
        abandon: abandon.collect::<Result<_, _>>().map_err(|_| bad("abandon"))?,
        frames,
    })
}

fn frame(frame: Frame) -> session_request::Frame {
    match frame {
        Frame::Started(lease) => {
            session_request::Frame::Started(v1::Started { lease: lease.to_string() })
        }
        Frame::Refused(lease, reason) => {
            session_request::Frame::Refused(v1::Refused { lease: lease.to_string(), reason })
        }
        Frame::Finished(lease, report) => {
            session_request::Frame::Finished(convert::finished(lease, report))
        }
    }
}

/// What a frame means; one that makes no sense is reported and passed over, the server repeats what it needs.
fn event(frame: v1::SessionResponse) -> Option<Event> {
    use session_response::Frame as F;
    let lease = |text: &str, input: fn(LeaseId) -> Input| match text.parse() {
        Ok(lease) => Some(Event::Input(input(lease))),
        Err(error) => {
            tracing::warn!(%error, "frame with a bad lease");
            None
        }
    };
    match frame.frame? {
        F::Welcome(_) => None,
        F::Assign(mut assign) => {
            let secrets = convert::secrets(std::mem::take(&mut assign.secrets));
            let id = assign.lease.parse();
            match convert::assignment("assign", assign) {
                Ok((session, assignment)) => {
                    Some(Event::Assign { session, assignment: Box::new(assignment), secrets })
                }
                Err(violations) => {
                    tracing::warn!(?violations, "an Assign that can't be read");
                    let why = format!("this agent can't read the assignment: {violations:?}");
                    id.ok().map(|lease| Event::Refuse(lease, why))
                }
            }
        }
        F::Ack(ack) => lease(&ack.lease, Input::Ack),
        F::Revoke(revoke) => lease(&revoke.lease, Input::Revoke),
        F::Abandon(abandon) => lease(&abandon.lease, Input::Abandon),
        F::Drain(_) => Some(Event::Input(Input::Drain)),
        F::Beat(_) => Some(Event::Input(Input::Beat)),
    }
}
