//! Brings the log of one lease to the server: reads the spool from the last acknowledged byte on, masked, and follows it
//! while the job runs. The spool is the buffer: a slow server slows nobody, and what was acknowledged is never sent
//! again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use kiln_core::id::LeaseId;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{Secrets, World},
    connection::{Acked, Event, PushError, Pusher},
    executor,
    lease::Input,
    run::Folder,
    spool::{CHUNK, Crc, Spool, Stages},
};

/// Bytes on the way at most: what a fast network holds in the time that a server's disk takes.
const WINDOW: u64 = 16 << 20;
const POLL_MIN: Duration = Duration::from_millis(5);
const POLL_MAX: Duration = Duration::from_millis(50);
/// How often a new stream is looked for.
const LOOK: Duration = Duration::from_millis(500);
/// A quiet log holds no stream of the connection open.
const IDLE: Duration = Duration::from_secs(30);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// What the server holds is not what was sent: nothing helps, until it seals what it has.
const MISMATCH_PAUSE: Duration = Duration::from_mins(1);

/// Lengths of all streams, once the job has ended.
pub(crate) type Lengths = Option<BTreeMap<String, u64>>;

/// The task that brings the log of one lease to the server.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) world: Arc<World>,
    pub(crate) lease: LeaseId,
    pub(crate) folder: Folder,
    pub(crate) secrets: watch::Receiver<Option<Arc<Secrets>>>,
    pub(crate) lengths: watch::Receiver<Lengths>,
    /// Nothing of the log is wanted any more.
    pub(crate) stop: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Push(#[from] PushError),
    #[error("the spool can't be read: {0}")]
    Spool(#[from] io::Error),
    #[error("the server holds {durable} bytes that are not those of the spool")]
    Mismatch { durable: u64 },
    #[error("the server did not repeat the secrets of the job: they can't be masked")]
    Unmaskable,
    /// Nothing was written for a while.
    #[error("idle")]
    Idle { staged: usize },
}

impl Upload {
    /// Ends when the server has the whole log, or when this process or the lease does.
    pub(crate) async fn run(self) {
        let (stop, leaving) = (self.stop.clone(), self.world.leaving.clone());
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = leaving.cancelled() => {}
            () = Box::pin(self.all()) => {}
        }
    }

    async fn all(self) {
        let mut secrets = self.secrets.clone();
        // Before the server repeated its secrets nothing of an adopted job's log is sent.
        let known = secrets.wait_for(Option::is_some).await.ok().and_then(|known| known.clone());
        let Some(secrets) = known else { return };
        let mut known = BTreeSet::from(["main".to_owned()]);
        let mut running = vec![self.stream("main".to_owned(), &secrets)];
        let mut lengths = self.lengths.clone();
        // Streams that appear later have uploads of their own.
        loop {
            let found = executor::streams(&self.folder).unwrap_or_default();
            for stream in found.into_iter().chain(named(&lengths)) {
                if known.insert(stream.clone()) {
                    running.push(self.stream(stream, &secrets));
                }
            }
            if lengths.borrow_and_update().is_some() {
                break;
            }
            tokio::select! {
                biased;
                _ = lengths.changed() => {}
                () = sleep(LOOK) => {}
                () = advance(&mut running), if running.iter().any(|one| one.0.is_some()) => {}
            }
        }
        advance(&mut running).await;
        let sealed = Event::Input(Input::LogSealed(self.lease));
        let _ends_with_us = self.world.events.send(sealed).await;
    }

    fn stream(&self, stream: String, secrets: &Secrets) -> Running {
        let uploading = Stream {
            world: Arc::clone(&self.world),
            lease: self.lease,
            spool: Spool::new(&self.folder, &stream, Arc::clone(&secrets.masker)),
            maskable: secrets.complete,
            folder: (stream == "main").then(|| self.folder.clone()),
            name: stream,
            lengths: self.lengths.clone(),
            acked: Crc::default(),
            staged: 0,
        };
        Running(Some(Box::pin(uploading.run())))
    }
}

fn named(lengths: &watch::Receiver<Lengths>) -> Vec<String> {
    lengths.borrow().as_ref().map(|all| all.keys().cloned().collect()).unwrap_or_default()
}

/// An upload that can be polled in turns, and stays done.
struct Running(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

async fn advance(all: &mut [Running]) {
    let each = all.iter_mut().map(|one| async {
        if let Some(upload) = &mut one.0 {
            upload.await;
            one.0 = None;
        }
    });
    join_all(each).await;
}

/// How long to wait after an upload that failed, and what was said of it already.
struct Patience {
    bound: Duration,
    reported: bool,
}

impl Default for Patience {
    fn default() -> Self {
        Self { bound: BACKOFF_MIN, reported: false }
    }
}

impl Patience {
    /// Nothing: the log is given up.
    fn pause(&mut self, failed: &Failed, progress: bool) -> Option<Duration> {
        match failed {
            Failed::Push(PushError::Closed(why)) => {
                tracing::warn!(why, "log given up");
                None
            }
            Failed::Mismatch { .. } | Failed::Unmaskable | Failed::Spool(_) => {
                if !std::mem::replace(&mut self.reported, true) {
                    tracing::error!(error = %failed, "log not sent");
                }
                Some(MISMATCH_PAUSE)
            }
            failed => {
                tracing::debug!(error = %failed, "upload cut");
                self.bound = if progress { BACKOFF_MIN } else { (self.bound * 2).min(BACKOFF_MAX) };
                Some(jitter(self.bound))
            }
        }
    }
}

/// The upload of one stream.
struct Stream {
    world: Arc<World>,
    lease: LeaseId,
    name: String,
    spool: Spool,
    /// All secrets of the job are known.
    maskable: bool,
    /// Where the stages are; they belong to the main stream.
    folder: Option<Folder>,
    lengths: watch::Receiver<Lengths>,
    /// What the server is known to hold.
    acked: Crc,
    /// Stages that were sent when it fell idle.
    staged: usize,
}

impl Stream {
    async fn run(mut self) {
        let mut patience = Patience::default();
        let mut idle = true;
        loop {
            if idle {
                self.something_to_send().await;
            }
            if self.is_empty() {
                return;
            }
            idle = false;
            let before = self.acked.offset;
            let failed = match self.session().await {
                Ok(()) => return,
                Err(Failed::Idle { staged }) => {
                    (self.staged, idle) = (staged, true);
                    continue;
                }
                Err(failed) => failed,
            };
            let span = tracing::info_span!("log", lease = %self.lease, stream = self.name);
            let progress = self.acked.offset > before;
            let Some(pause) = span.in_scope(|| patience.pause(&failed, progress)) else { return };
            sleep(pause).await;
        }
    }

    /// The length, once the job has ended; a stream that its report does not name is empty.
    fn end(&self) -> Option<u64> {
        let lengths = self.lengths.borrow();
        lengths.as_ref().map(|all| all.get(&self.name).copied().unwrap_or(0))
    }

    /// The job has ended and there is nothing to bring: the report alone tells the server that the log is complete.
    fn is_empty(&self) -> bool {
        self.end() == Some(0)
            && self.acked.offset == 0
            && self.staged == 0
            && self.stages().from(0).is_empty()
    }

    async fn something_to_send(&self) {
        let mut poll = POLL_MIN;
        let mut stages = self.stages();
        while self.end().is_none()
            && self.spool.length().is_ok_and(|length| length <= self.acked.offset)
            && stages.from(self.staged).is_empty()
        {
            sleep(poll).await;
            poll = (poll * 2).min(POLL_MAX);
        }
    }

    fn stages(&self) -> Stages {
        Stages::new(self.folder.as_ref())
    }

    /// One upload, until the log is sealed.
    async fn session(&mut self) -> Result<(), Failed> {
        let (pusher, mut acks, first) = self.world.server.push_log(self.lease, &self.name).await?;
        if first.sealed {
            return Ok(());
        }
        if !self.maskable {
            return Err(Failed::Unmaskable);
        }
        self.verify(first).await?;
        let flight = Flight {
            pieces: Mutex::new(VecDeque::new()),
            acked: Mutex::new(self.acked.clone()),
            moved: Notify::new(),
        };
        let result = {
            let receive = async {
                loop {
                    let ack = acks.next().await?;
                    flight.landed(ack.durable);
                    if ack.sealed {
                        return Ok(());
                    }
                }
            };
            let send = self.send(&pusher, &flight, first.stages);
            tokio::select! {
                // What the server says of the end is wanted more than that it can't be written to any more.
                biased;
                sealed = receive => sealed,
                failed = send => match failed {
                    Ok(never) => match never {},
                    Err(Failed::Push(cut)) => Err(match timeout(BACKOFF_MIN, acks.next()).await {
                        Ok(Err(why)) => Failed::Push(why),
                        _ => Failed::Push(cut),
                    }),
                    Err(other) => Err(other),
                },
            }
        };
        self.acked = flight.acked.into_inner().unwrap_or_else(PoisonError::into_inner);
        result
    }

    /// Compares what the server holds with the spool.
    async fn verify(&mut self, first: Acked) -> Result<(), Failed> {
        let mismatch = Failed::Mismatch { durable: first.durable };
        let known = self.acked.clone();
        let state = if known.offset <= first.durable { known } else { Crc::default() };
        let (spool, end) = (self.spool.clone(), self.end());
        let compute = move || spool.crc(state, first.durable, end);
        let crc = tokio::task::spawn_blocking(compute).await.map_err(io::Error::other)??;
        match crc {
            Some(crc) if crc.value() == first.crc32 => {
                self.acked = crc;
                Ok(())
            }
            _ => Err(mismatch),
        }
    }

    async fn send(
        &self,
        pusher: &Pusher,
        flight: &Flight,
        mut staged: usize,
    ) -> Result<std::convert::Infallible, Failed> {
        let mut sent = self.acked.clone();
        let mut poll = POLL_MIN;
        let mut quiet_since = Instant::now();
        let mut marks = self.stages();
        loop {
            flight.room(sent.offset).await;
            let end = self.end();
            let mut next = None;
            for mark in marks.from(staged) {
                if mark.offset > sent.offset && end.is_none_or(|end| sent.offset < end) {
                    next = Some(mark.offset);
                    break;
                }
                pusher.stage(mark).await?;
                staged += 1;
            }
            // A stage is said between the bytes that it lies between.
            let most = next.map_or(CHUNK, |offset| CHUNK.min(offset - sent.offset));
            let piece = self.read(sent.offset, most, end).await?;
            if !piece.is_empty() {
                let offset = sent.offset;
                sent.add(&piece);
                flight.left(sent.clone());
                pusher.chunk(offset, piece).await?;
                (poll, quiet_since) = (POLL_MIN, Instant::now());
            } else if end.is_some_and(|end| end <= sent.offset) {
                pusher.end(sent.offset).await?;
                // The answer ends this upload.
                std::future::pending::<()>().await;
            } else if end.is_none() && quiet_since.elapsed() > IDLE && flight.is_empty() {
                return Err(Failed::Idle { staged });
            } else if end.is_some() {
                return Err(io::Error::other("it is shorter than its report says").into());
            } else {
                sleep(poll).await;
                poll = (poll * 2).min(POLL_MAX);
            }
        }
    }

    async fn read(&self, offset: u64, most: u64, end: Option<u64>) -> io::Result<bytes::Bytes> {
        // A look at the length costs nothing; only what there is to read goes to a thread.
        if self.spool.length()? <= offset {
            return Ok(bytes::Bytes::new());
        }
        let spool = self.spool.clone();
        let read = move || spool.read(offset, most, end);
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }
}

/// What was sent and is not acknowledged.
struct Flight {
    /// The checksum behind each piece that is on the way.
    pieces: Mutex<VecDeque<Crc>>,
    acked: Mutex<Crc>,
    moved: Notify,
}

impl Flight {
    fn left(&self, crc: Crc) {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).push_back(crc);
    }

    fn is_empty(&self) -> bool {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn landed(&self, durable: u64) {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        while pieces.front().is_some_and(|crc| crc.offset <= durable) {
            if let Some(crc) = pieces.pop_front() {
                *self.acked.lock().unwrap_or_else(PoisonError::into_inner) = crc;
            }
        }
        self.moved.notify_one();
    }

    /// Waits until so little is on the way that more may be sent.
    async fn room(&self, sent: u64) {
        loop {
            let moved = self.moved.notified();
            let acked = self.acked.lock().unwrap_or_else(PoisonError::into_inner).offset;
            if sent - acked < WINDOW {
                return;
            }
            moved.await;
        }
    }
}

fn jitter(bound: Duration) -> Duration {
    let random = getrandom::u64().unwrap_or(u64::MAX / 2);
    let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(random % micros.saturating_add(1))
}
