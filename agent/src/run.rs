//! What the world offers to a backend while it runs one job: its folder, its log, its cancellation, and a supervisor that
//! outlives this process. It knows no session and no server.

mod folder;

use std::{
    io,
    path::{Path, PathBuf},
};

use kiln_core::{Millis, id::LeaseId};
use tokio_util::sync::CancellationToken;

pub use folder::{Folder, StageMark};
pub(crate) use folder::{is_no_room, replace, write_durably};
pub use kiln_core::secret::Secret;

use crate::{
    backend::Failure,
    supervisor::{Exit, Spec, Task, client},
};

/// One job's view of the world.
#[derive(Debug, Clone)]
pub struct Run {
    pub lease: LeaseId,
    /// The lease folder; only this agent reads it.
    pub folder: Folder,
    pub secrets: Vec<Secret>,
    /// Fires when the job shall end: cancelled, out of time, or not wanted any more. Why is the executor's to know.
    pub cancel: CancellationToken,
    /// From a polite request to end until everything is killed.
    pub grace_ms: Millis,
    /// Without [`Folder::hear`] for so long the supervisor ends the job by itself; zero: never.
    pub lifeline_ms: Millis,
    /// The executable with the hidden subcommand `supervise`: this one, or a stand-in in tests.
    pub supervisor: PathBuf,
    /// Milliseconds since the epoch.
    pub now: fn() -> Millis,
}

impl Run {
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    pub fn workspace(&self) -> PathBuf {
        self.folder.workspace()
    }

    /// Marks that a part of the job begins here in its log.
    pub async fn stage(&self, name: &str) -> io::Result<()> {
        let (folder, name, time_ms) = (self.folder.clone(), name.to_owned(), (self.now)());
        blocking(move || folder.mark(&name, time_ms)).await
    }

    /// Writes a short message to the log. Not while a supervisor runs: it is the only writer then.
    pub async fn say(&self, text: &str) -> io::Result<()> {
        let (folder, text) = (self.folder.clone(), text.to_owned());
        blocking(move || folder.say(&text)).await
    }

    /// Keeps what `adopt` needs when this process is dead. It need not outlast the machine, on which nothing lives then.
    pub async fn remember(&self, handle: &str) -> io::Result<()> {
        let (folder, handle) = (self.folder.clone(), handle.to_owned());
        blocking(move || folder.remember(&handle)).await
    }

    /// Starts a supervisor for the task and waits for its end, or goes on waiting for one that was started before.
    pub async fn spawn(&self, task: Task) -> Result<Exit, Failure> {
        let spec = Spec {
            dir: self.dir().to_owned(),
            grace_ms: self.grace_ms,
            lifeline_ms: self.lifeline_ms,
            task,
        };
        let started = client::start(self, &spec).await?;
        client::wait(self, &spec.task, started).await
    }

    /// Waits for the end of a task that an earlier process of this agent spawned.
    pub async fn reattach(&self, handle: &str) -> Result<Exit, Failure> {
        let task = client::task(self)?;
        client::wait(self, &task, handle.parse().ok()).await
    }
}

/// Small files of a lease, off the threads that must not wait.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
