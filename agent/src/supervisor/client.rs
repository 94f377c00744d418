//! The agent's side of a supervisor: start it, wait for it, ask it to end, clean up after one that died.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Stdio,
    time::Duration,
};

use kiln_core::id::LeaseId;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{io::unix::AsyncFd, process::Command};

use super::{
    CANCEL_FILE, ERROR_FILE, IDENTITY_FILE, Identity, SPEC_FILE, exit, reaper,
    spec::{Spec, Task, Work},
};
use crate::{
    backend::Failure,
    run::{Run, blocking, replace, write_durably},
    supervisor::Exit,
};

/// What of a dead supervisor's own errors is told.
const ERROR_BYTES: usize = 400;
const RETRY: Duration = Duration::from_secs(1);

/// The variable by which processes of a lease are found when all else fails.
pub(crate) fn marker(lease: LeaseId) -> (String, String) {
    ("KILN_LEASE".to_owned(), lease.to_string())
}

/// Starts a supervisor, unless the lease has or had one.
pub(crate) async fn start(run: &Run, spec: &Spec) -> Result<Option<Identity>, Failure> {
    let dir = run.dir();
    if dir.join(IDENTITY_FILE).exists() {
        return Ok(None);
    }
    launch(run, spec).await.map(Some).map_err(|error| {
        let program = run.supervisor.display();
        Failure::infra(format!("the job's supervisor ({program}) can't be started: {error}"))
    })
}

async fn launch(run: &Run, spec: &Spec) -> io::Result<Identity> {
    let path = run.dir().join(SPEC_FILE);
    let (file, text) = (path.clone(), serde_json::to_vec(spec)?);
    blocking(move || replace(&file, &text)).await?;
    let errors = private_file(&run.dir().join(ERROR_FILE))?;
    // Dropping the child is no neglect: the runtime reaps it, and the wait is by file descriptor, as after a restart.
    let child = Command::new(&run.supervisor)
        .arg("supervise")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .current_dir("/")
        .kill_on_drop(false)
        .spawn()?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let identity = Identity::of(pid.ok_or_else(|| io::Error::other("it ended at once"))?)?;
    if run.folder.remembered()?.is_none() {
        run.remember(&identity.to_string()).await?;
    }
    Ok(identity)
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// What the supervisor of this lease was told.
pub(crate) fn task(run: &Run) -> Result<Task, Failure> {
    let told = std::fs::read(run.dir().join(SPEC_FILE));
    let spec = told.and_then(|bytes| Ok(serde_json::from_slice::<Spec>(&bytes)?));
    spec.map(|spec| spec.task).map_err(|error| lost(run, &error.to_string()))
}

/// Waits until the supervisor has left its exit file, or died without.
pub(crate) async fn wait(
    run: &Run,
    task: &Task,
    mut watched: Option<Identity>,
) -> Result<Exit, Failure> {
    loop {
        if let Some(identity) = &watched {
            gone(run, identity).await.map_err(|error| lost(run, &error.to_string()))?;
        }
        if let Some(exit) = exit::read(run.dir()).map_err(|error| lost(run, &error.to_string()))? {
            return Ok(exit);
        }
        // The one that was watched may have found another at work: then that one is the supervisor.
        let written = std::fs::read_to_string(run.dir().join(IDENTITY_FILE));
        let written = written.ok().and_then(|text| text.parse::<Identity>().ok());
        match written {
            Some(identity) if watched.as_ref() != Some(&identity) => watched = Some(identity),
            _ => break,
        }
    }
    clean(run, task).await;
    Err(lost(run, &errors(run.dir())))
}

/// Waits until a process is dead, and passes a cancellation on to it.
async fn gone(run: &Run, identity: &Identity) -> io::Result<()> {
    let Some(pid) = identity.pid() else { return Ok(()) };
    let process = loop {
        let opened = pidfd_open(pid, PidfdFlags::NONBLOCK);
        // Only now: the descriptor can't become another process', the number can.
        if !identity.exists() {
            return Ok(());
        }
        match opened {
            Ok(process) => break process,
            // Too many open files here are no reason to give up a job that runs.
            Err(error) => tracing::warn!(lease = %run.lease, %error, "watching a supervisor"),
        }
        tokio::time::sleep(RETRY).await;
    };
    #[allow(deprecated, reason = "its heir is unsafe; an OwnedFd is what it claims to be")]
    let process = AsyncFd::new(process)?;
    tokio::select! {
        ready = process.readable() => return ready.map(drop),
        () = run.cancel.cancelled() => {}
    }
    request_end(run).await?;
    let _dead_by_now = pidfd_send_signal(process.get_ref(), Signal::TERM);
    process.readable().await.map(drop)
}

async fn request_end(run: &Run) -> io::Result<()> {
    let file = run.dir().join(CANCEL_FILE);
    blocking(move || write_durably(&file, b"")).await
}

/// Ends what a dead supervisor left.
async fn clean(run: &Run, task: &Task) {
    // One that only now comes to run finds it.
    let _no_folder = request_end(run).await;
    match &task.work {
        Work::Container { engine, id, .. } => engine.kill(id).await,
        Work::Process { containment, .. } => {
            let containment = containment.clone();
            let (name, value) = marker(run.lease);
            let work = move || {
                containment.kill();
                reaper::kill_marked(&format!("{name}={value}"));
                containment.remove();
            };
            let _never_panics = tokio::task::spawn_blocking(work).await;
        }
    }
}

fn errors(dir: &Path) -> String {
    let text = std::fs::read(dir.join(ERROR_FILE)).unwrap_or_default();
    let tail = &text[text.len().saturating_sub(ERROR_BYTES)..];
    let tail = String::from_utf8_lossy(tail).trim().to_owned();
    if tail.is_empty() { "it was killed, or the machine was restarted".to_owned() } else { tail }
}

fn lost(run: &Run, why: &str) -> Failure {
    Failure::infra(format!("the supervisor of {} is gone: {why}", run.lease))
}
