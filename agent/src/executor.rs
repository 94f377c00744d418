//! One job from its lease to its report: workspace, backend, artifacts, and the limits around them. It knows no session;
//! when this process ends, the job goes on without it.

use std::{collections::BTreeMap, fs, future::Future, io, path::Path, sync::Arc, time::Duration};

use kiln_core::{
    Millis,
    outcome::{FailureKind, Outcome},
    session::{Artifact, Assignment, Report},
    spec::Source,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{Secrets, World},
    artifacts,
    backend::{Backend, Failure},
    checkout, clock,
    connection::Event,
    lease::Input,
    run::{Folder, Run},
    supervisor, trace, workspace,
};

/// A backend that has not ended this long after the grace time never will.
const KILL_LIMIT: Duration = Duration::from_mins(1);
/// Sleeps are cut in pieces, because the clock of a timer stands still while the machine sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// When the job was taken, so that its time goes on when another process of this agent adopts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Began {
    /// In milliseconds since the machine's start.
    At(Millis),
    /// Before the machine was started anew: whatever ran of it is dead.
    OnAnotherBoot,
}

impl Began {
    /// Returns when so much time is over. What died with the machine only has to be told.
    async fn elapse(self, limit_ms: Millis) {
        let Self::At(began) = self else { return std::future::pending().await };
        loop {
            let left = limit_ms - (clock::boot_ms() - began);
            let Ok(left) = u64::try_from(left) else { return };
            if left == 0 {
                return;
            }
            sleep(Duration::from_millis(left).min(LONGEST_SLEEP)).await;
        }
    }
}

/// Why a job was stopped from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Cancelled,
    Forsaken,
    TotalTime,
}

impl Stop {
    fn outcome(self, job: &Assignment) -> Outcome {
        match self {
            Self::Cancelled => Outcome::cancelled("cancelled while it ran"),
            Self::Forsaken => Outcome::failed(FailureKind::Lost, supervisor::FORSAKEN),
            Self::TotalTime => {
                let seconds = job.spec.timeouts.total_ms / 1_000;
                let message = format!("it ran longer than {seconds} s (timeouts.total)");
                Outcome::failed(FailureKind::Timeout, message)
            }
        }
    }
}

/// One lease's task.
#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) world: Arc<World>,
    pub(crate) job: Box<Assignment>,
    pub(crate) began: Began,
    pub(crate) folder: Folder,
    pub(crate) cancel: CancellationToken,
    pub(crate) forsake: CancellationToken,
    /// See [`Run::lifeline_ms`].
    pub(crate) lifeline_ms: Millis,
    pub(crate) secrets: watch::Receiver<Option<Arc<Secrets>>>,
}

impl Executor {
    /// Runs the job to its end and says how it ended; or stops in the middle when this process does.
    pub(crate) async fn run(self) {
        let leaving = self.world.leaving.clone();
        let report = tokio::select! {
            biased;
            () = leaving.cancelled() => return,
            report = Box::pin(self.report()) => report,
        };
        let ended = Event::Input(Input::Ended(self.job.lease, report));
        // Nobody hears it where this process ends: then the next one adopts the job and says it.
        let _adopted = self.world.events.send(ended).await;
    }

    async fn report(&self) -> Report {
        let mut artifacts = vec![];
        let outcome = match self.outcome(&mut artifacts).await {
            Ok(()) => Outcome::Succeeded,
            Err(outcome) => outcome,
        };
        self.trace(&outcome).await;
        let folder = self.folder.clone();
        let lengths = tokio::task::spawn_blocking(move || log_lengths(&folder)).await;
        let log_lengths = lengths.ok().and_then(Result::ok).unwrap_or_else(|| {
            tracing::error!(lease = %self.job.lease, "the spool can't be read");
            [("main".to_owned(), 0)].into()
        });
        Report { outcome, artifacts, log_lengths }
    }

    /// Tells of the job in its build's trace, where there is one.
    async fn trace(&self, outcome: &Outcome) {
        let Some(place) = trace::place(&self.job) else { return };
        let folder = self.folder.clone();
        let marks = tokio::task::spawn_blocking(move || folder.marks()).await;
        let marks = marks.ok().and_then(Result::ok).unwrap_or_default();
        let now = clock::wall_ms();
        let from = match self.began {
            Began::At(began) => now - (clock::boot_ms() - began),
            Began::OnAnotherBoot => marks.first().map_or(now, |mark| mark.time_ms),
        };
        trace::ended(&self.job, place, &marks, (from, now), outcome);
    }

    async fn outcome(&self, artifacts: &mut Vec<Artifact>) -> Result<(), Outcome> {
        let setup = |error: io::Error| failed(Failure::infra(format!("lease folder: {error}")));
        let handle = self.folder.remembered().map_err(setup)?;
        if handle.is_none() && self.began == Began::OnAnotherBoot {
            // It may have begun: the files that would tell are durable at its end only.
            return Err(failed(Failure::infra("the machine was restarted while it held the job")));
        }
        let backend =
            self.world.backends.get(&self.job.spec.backend).cloned().ok_or_else(|| {
                failed(Failure::infra(format!(
                    "this agent has no backend {:?}",
                    self.job.spec.backend
                )))
            })?;
        let run = self.prepare_run(handle.is_some()).await?;
        let started = Event::Input(Input::Started(self.job.lease));
        let _ends_with_us = self.world.events.send(started).await;
        if handle.is_none() {
            let prepare = Box::pin(self.prepare(&run));
            self.limited(prepare).await?.map_err(failed)?;
        }
        let ran = self.execute(&run, backend, handle).await;
        if !matches!(&ran, Ok(()) | Err(Outcome::Failed { kind: FailureKind::User, .. })) {
            return ran;
        }
        if !self.job.spec.artifacts.is_empty() {
            let collected = Box::pin(self.collect(&run));
            match self.limited(collected).await {
                Ok(Ok(found)) => *artifacts = found,
                Ok(Err(failure)) => return ran.and_then(|()| Err(failed(failure))),
                Err(stopped) => return ran.and(Err(stopped)),
            }
        }
        ran
    }

    /// What the backend gets. A job that begins here waits for its secrets; an adopted one has them already.
    async fn prepare_run(&self, adopted: bool) -> Result<Run, Outcome> {
        let mut known = self.secrets.clone();
        let secrets = if adopted {
            known.borrow().as_ref().map(|secrets| secrets.list.clone()).unwrap_or_default()
        } else {
            let wait = Box::pin(async {
                let known = known.wait_for(Option::is_some).await;
                known.ok().and_then(|known| known.as_ref().map(|known| known.list.clone()))
            });
            self.limited(wait).await?.unwrap_or_default()
        };
        Ok(Run {
            lease: self.job.lease,
            folder: self.folder.clone(),
            secrets,
            cancel: CancellationToken::new(),
            grace_ms: self.world.config.cancel_grace_ms,
            lifeline_ms: self.lifeline_ms,
            supervisor: self.world.supervisor.clone(),
            now: clock::wall_ms,
        })
    }

    /// Something of ours that ends by being dropped.
    async fn limited<T>(&self, work: impl Future<Output = T> + Unpin) -> Result<T, Outcome> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            stop = self.stopped() => Err(stop.outcome(&self.job)),
        }
    }

    async fn stopped(&self) -> Stop {
        tokio::select! {
            () = self.cancel.cancelled() => Stop::Cancelled,
            () = self.forsake.cancelled() => Stop::Forsaken,
            () = self.began.elapse(self.job.spec.timeouts.total_ms) => Stop::TotalTime,
        }
    }

    async fn execute(
        &self,
        run: &Run,
        backend: Arc<dyn Backend>,
        handle: Option<String>,
    ) -> Result<(), Outcome> {
        let mut running = match &handle {
            Some(handle) => backend.adopt(&self.job, run, handle),
            None => backend.run(&self.job, run),
        };
        let stop = tokio::select! {
            biased;
            result = &mut running => return result.map_err(failed),
            stop = self.stopped() => stop,
        };
        run.cancel.cancel();
        let grace = Duration::from_millis(u64::try_from(run.grace_ms).unwrap_or(0));
        if timeout(grace + KILL_LIMIT, running).await.is_err() {
            let message = "the backend did not end the job in time; something of it may still run";
            tracing::error!(lease = %self.job.lease, message);
            return Err(failed(Failure::infra(message)));
        }
        let outcome = stop.outcome(&self.job);
        if let Outcome::Failed { message, .. } | Outcome::Cancelled { message } = &outcome {
            let _only_a_hint = run.say(&format!("kiln: {message}")).await;
        }
        Err(outcome)
    }

    /// Fills the workspace.
    async fn prepare(&self, run: &Run) -> Result<(), Failure> {
        let infra = |error: io::Error| Failure::infra(format!("workspace: {error}"));
        let root = run.workspace();
        // What an earlier process of this agent left, that did not come to begin the job.
        if root.exists() {
            artifacts::blocking(move || workspace::empty(&root).map_err(infra)).await?;
        }
        let spec = &self.job.spec;
        let source = spec.source.as_ref().filter(|_| !spec.no_source);
        if source.is_none() && self.job.inputs.is_empty() {
            return Ok(());
        }
        run.folder.make_workspace().map_err(infra)?;
        run.stage("checkout").await.map_err(infra)?;
        match source {
            Some(Source::Git { url, r#ref, submodules }) => {
                let allow_local = self.world.config.allow_local_git;
                let from = checkout::Address::of(url);
                let checkout = checkout::Checkout {
                    from,
                    reference: r#ref,
                    submodules: *submodules,
                    allow_local,
                };
                let limit = Duration::from_secs(self.world.config.checkout_limit_s);
                let commit = timeout(limit, checkout.run(run)).await.map_err(|_| {
                    let of = from.public();
                    Failure::infra(format!("the checkout of {of} took longer than {limit:?}"))
                })??;
                tracing::info!(lease = %run.lease, commit, "checked out");
            }
            Some(Source::Archive { sha256, .. }) => {
                let server = &self.world.server;
                let archive = artifacts::fetch(run, server, sha256, "source").await?;
                let (into, most) = (run.workspace(), self.world.config.source_bytes);
                artifacts::blocking(move || unpack(&archive, &into, most)).await?;
            }
            None => {}
        }
        artifacts::place(&self.job, run, &self.world.server).await
    }

    async fn collect(&self, run: &Run) -> Result<Vec<Artifact>, Failure> {
        run.stage("artifacts").await.map_err(|error| Failure::infra(format!("stage: {error}")))?;
        artifacts::collect(&self.job, run, &self.world.server).await
    }
}

fn unpack(archive: &Path, into: &Path, most: u64) -> Result<(), Failure> {
    checkout::unpack(archive, into, most)
        .and_then(|()| fs::remove_file(archive))
        .map_err(|error| Failure::user(format!("source: can't be unpacked: {error}")))
}

fn failed(failure: Failure) -> Outcome {
    let Failure { kind, exit_code, message } = failure;
    Outcome::Failed { kind, exit_code, message }
}

/// Each job has a main log, be it empty.
fn log_lengths(folder: &Folder) -> io::Result<BTreeMap<String, u64>> {
    let mut lengths = BTreeMap::from([("main".to_owned(), 0)]);
    for stream in streams(folder)? {
        let length = fs::metadata(folder.spool(&stream))?.len();
        lengths.insert(stream, length);
    }
    Ok(lengths)
}

/// The names of all streams that have a spool.
pub(crate) fn streams(folder: &Folder) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder.spool_dir()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries?,
    };
    let mut names = vec![];
    for entry in entries {
        let name = entry?.file_name();
        let stream = name.to_str().and_then(|name| name.strip_suffix(".log"));
        names.extend(stream.filter(|name| kiln_core::spec::is_name(name)).map(str::to_owned));
    }
    Ok(names)
}
