//! The loop of a supervisor: output into the spool, the stall clock, requests to end, the end.
//!
//! ```text
//! running ──by itself──────────────────────────────> closing ─> exit.json
//!    │                                                  ^
//!    └─cancelled, stalled─> ending (TERM) ──grace over──┤
//!    └─the log can't be written─────────────────────────┘      closing kills whatever is left
//! ```
//!
//! While the disk has no room for the log, nothing more is read: the job's pipe fills up, and the job waits.

use std::{fmt, io, path::Path, time::Duration};

use kiln_core::Millis;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::unix::pipe,
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    CANCEL_FILE, FORSAKEN,
    container::Container,
    exit::{Ending, Exit, Reserved},
    process::Process,
    spec::{Spec, Work},
    spool::Spool,
};
use crate::run::Folder;

/// How often the stall clock and the request to end are looked at; the latter comes with a signal too.
const TICK: Duration = Duration::from_millis(100);
/// Many times what it takes to empty a pipe.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
const BUFFER_BYTES: usize = 512 << 10;
const ENDED: &str = "ended on request";

/// What is watched.
pub(super) trait Job {
    /// Returns when it has ended by itself; may be dropped and called again.
    async fn ended(&mut self);
    /// Nothing of it is left.
    fn is_deserted(&mut self) -> bool;
    /// Asks it to end.
    async fn terminate(&mut self);
    /// Ends it, with all that it started.
    async fn kill(&mut self);
    /// After its end: kills what it left, and says how it ended.
    async fn close(&mut self) -> Exit;
}

/// What the job prints.
pub(super) struct Output {
    source: Box<dyn AsyncRead + Unpin>,
    /// How long to wait for more when the job is dead.
    linger: Duration,
    buffer: Vec<u8>,
    open: bool,
    /// What must not be dropped before the source.
    _held: Option<Box<dyn std::any::Any>>,
    /// What keeps the source from ending before the job does.
    feed: Option<pipe::Sender>,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("open", &self.open).finish_non_exhaustive()
    }
}

impl Output {
    pub(super) fn new(source: impl AsyncRead + Unpin + 'static, linger: Duration) -> Self {
        let buffer = vec![0; BUFFER_BYTES];
        Self { source: Box::new(source), linger, buffer, open: true, _held: None, feed: None }
    }

    /// One that ends when something else is dropped.
    pub(super) fn holding(
        source: impl AsyncRead + Unpin + 'static,
        linger: Duration,
        held: impl std::any::Any,
    ) -> Self {
        Self { _held: Some(Box::new(held)), ..Self::new(source, linger) }
    }

    /// One that has no end before the job is dead.
    pub(super) fn fed(reader: pipe::Receiver, linger: Duration, feed: pipe::Sender) -> Self {
        Self { feed: Some(feed), ..Self::new(reader, linger) }
    }

    /// The next bytes; nothing: that was all. May be dropped and called again.
    async fn next(&mut self) -> &[u8] {
        let length = self.source.read(&mut self.buffer).await.unwrap_or(0);
        self.open = length > 0;
        &self.buffer[..length]
    }
}

/// Runs the job to its end and writes the exit file.
pub(super) async fn watch(spec: &Spec) -> io::Result<()> {
    let reserved = Reserved::take(&spec.dir)?;
    let folder = Folder::new(&spec.dir);
    let mut spool = Spool::open(folder.open_spool("main")?, spec.task.log_bytes)?;
    let exit = match &spec.task.work {
        // The agent may have given the lease up before this process came to run.
        _ if spec.dir.join(CANCEL_FILE).exists() => Exit::new(Ending::Cancelled, ENDED),
        Work::Process { argv, env, cwd, containment } => {
            match Process::start(argv, env, cwd, containment) {
                Ok((job, output)) => Watch::new(spec, &mut spool, output).run(job).await?,
                Err(exit) => {
                    containment.remove();
                    exit
                }
            }
        }
        Work::Container { engine, id, output } => {
            match Container::start(engine, id, output).await {
                Ok((job, output)) => Watch::new(spec, &mut spool, output).run(job).await?,
                Err(exit) => exit,
            }
        }
    };
    let exit = match spool.sync() {
        Ok(()) => exit,
        Err(error) => unwritable(&spec.dir, &error),
    };
    reserved.write(&exit, &folder)
}

fn unwritable(dir: &Path, error: &io::Error) -> Exit {
    let dir = dir.display();
    Exit::new(Ending::Broken, format!("the agent can't write the log in {dir}: {error}"))
}

/// The time that an exclusive job has without a word of the server, whether its agent lives or not.
struct Lifeline {
    folder: Folder,
    limit: Duration,
    last: Option<String>,
    since: Instant,
}

impl Lifeline {
    fn new(dir: &Path, limit: Duration) -> Self {
        let folder = Folder::new(dir);
        Self { last: folder.last_heard(), folder, limit, since: Instant::now() }
    }

    fn is_broken(&mut self) -> bool {
        if self.limit.is_zero() {
            return false;
        }
        let last = self.folder.last_heard();
        if last != self.last {
            (self.last, self.since) = (last, Instant::now());
        }
        self.since.elapsed() >= self.limit
    }
}

struct Watch<'a> {
    spec: &'a Spec,
    spool: &'a mut Spool,
    output: Output,
    heard: Instant,
    lifeline: Lifeline,
    /// Why it is to end by our doing, and when it is killed.
    ending: Option<(Exit, Instant)>,
    ended: bool,
}

impl<'a> Watch<'a> {
    fn new(spec: &'a Spec, spool: &'a mut Spool, output: Output) -> Self {
        let lifeline = Lifeline::new(&spec.dir, millis(spec.lifeline_ms));
        Self { spec, spool, output, heard: Instant::now(), lifeline, ending: None, ended: false }
    }

    async fn run(mut self, mut job: impl Job) -> io::Result<Exit> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The agent knocks after it wrote its request. Without a request nothing happens: whoever ends all of kiln's
        // processes to restart the agent does not mean the jobs.
        let mut knock = signal(SignalKind::terminate())?;
        while !self.is_over(&mut job) {
            tokio::select! {
                bytes = self.output.next(), if self.output.open && !self.spool.is_waiting() => {
                    self.heard = Instant::now();
                    if let Err(error) = self.spool.write(bytes) {
                        self.break_off(&error, &mut job).await;
                    }
                }
                () = job.ended(), if !self.ended => self.ended = true,
                _ = knock.recv() => self.look(&mut job).await,
                _ = tick.tick() => self.look(&mut job).await,
            }
        }
        let own = job.close().await;
        self.drain().await;
        Ok(match self.ending {
            Some((ending, _)) => Exit { ending: ending.ending, message: ending.message, ..own },
            None => own,
        })
    }

    /// An end by itself is final; on request, what the job left has the rest of the grace time.
    fn is_over(&self, job: &mut impl Job) -> bool {
        self.ended
            && self
                .ending
                .as_ref()
                .is_none_or(|(_, deadline)| *deadline <= Instant::now() || job.is_deserted())
    }

    async fn look(&mut self, job: &mut impl Job) {
        if self.spool.is_waiting() {
            // The disk keeps the job from printing.
            self.heard = Instant::now();
            if let Err(error) = self.spool.flush() {
                self.break_off(&error, job).await;
            }
        }
        let stall = millis(self.spec.task.stall_ms);
        match &self.ending {
            Some((_, deadline)) if *deadline <= Instant::now() => job.kill().await,
            None if self.spec.dir.join(CANCEL_FILE).exists() => {
                self.end(Exit::new(Ending::Cancelled, ENDED), job).await;
            }
            None if !stall.is_zero() && self.heard.elapsed() >= stall => {
                let message = format!("no output for {} s", stall.as_secs_f32());
                self.end(Exit::new(Ending::Stalled, message), job).await;
            }
            None if self.lifeline.is_broken() => {
                self.end(Exit::new(Ending::Forsaken, FORSAKEN), job).await;
            }
            Some(_) | None => {}
        }
    }

    async fn end(&mut self, exit: Exit, job: &mut impl Job) {
        self.ending = Some((exit, Instant::now() + millis(self.spec.grace_ms)));
        job.terminate().await;
    }

    /// A log that can't be written is no log: the job ends at once, and what it prints is dropped.
    async fn break_off(&mut self, error: &io::Error, job: &mut impl Job) {
        let broken = |exit: &Exit| exit.ending == Ending::Broken;
        if !self.ending.as_ref().is_some_and(|(exit, _)| broken(exit)) {
            self.ending = Some((unwritable(&self.spec.dir, error), Instant::now()));
            job.kill().await;
        }
    }

    /// All that the job wrote before it died is in the pipe. Who still writes is no part of it.
    async fn drain(&mut self) {
        let linger = self.output.linger;
        self.output.feed = None;
        let mut end = Instant::now() + DRAIN_LIMIT;
        loop {
            let written = if self.spool.is_waiting() {
                if self.is_given_up() {
                    return;
                }
                sleep(TICK).await;
                end = Instant::now() + DRAIN_LIMIT;
                self.spool.flush()
            } else if self.output.open && Instant::now() < end {
                let Ok(bytes) = timeout(linger, self.output.next()).await else { return };
                self.spool.write(bytes)
            } else {
                return;
            };
            if let Err(error) = written {
                self.ending = Some((unwritable(&self.spec.dir, &error), Instant::now()));
                return;
            }
        }
    }

    /// The end of a log for which there is no room is waited for, unless somebody wants the job to be over.
    fn is_given_up(&mut self) -> bool {
        if self.ending.is_none() && self.spec.dir.join(CANCEL_FILE).exists() {
            self.ending = Some((Exit::new(Ending::Cancelled, ENDED), Instant::now()));
        }
        self.ending.is_some()
    }
}

fn millis(count: Millis) -> Duration {
    Duration::from_millis(u64::try_from(count).unwrap_or(0))
}
