//! The seam to what executes jobs. A new backend is one file here and one line in [`all`].

pub mod docker;
mod job;
mod secrets;
pub mod shell;

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use kiln_core::{agent::Offer, id::LeaseId, outcome::FailureKind, session::Assignment};
use serde::{Deserialize, Serialize};

use crate::run::Run;

/// What is configured of the backends of this crate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub shell: shell::Config,
    pub docker: docker::Config,
}

/// All backends of this crate. A new one is one line here. `owner` is the agent's data folder by a random id of its own:
/// what a backend leaves outside of it carries this label.
pub fn all(config: &Config, owner: &str) -> Vec<Arc<dyn Backend>> {
    let mut backends: Vec<Arc<dyn Backend>> = vec![];
    if config.shell.enabled {
        backends.push(Arc::new(shell::Shell::new(config.shell.clone(), owner)));
    }
    if config.docker.enabled {
        backends.push(Arc::new(docker::Docker::new(config.docker.clone(), owner)));
    }
    backends
}

/// Why a job did not succeed. Data for its outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: FailureKind,
    pub exit_code: Option<i32>,
    pub message: String,
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, exit_code: None, message: message.into() }
    }

    pub fn infra(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Infra, message)
    }

    pub fn user(message: impl Into<String>) -> Self {
        Self::new(FailureKind::User, message)
    }
}

/// Why a backend does not work on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// What executes jobs, and marks its own stages in their logs. The executor owns time limits, workspace, cancel grace, logs and artifacts; a backend never does.
#[async_trait]
pub trait Backend: Debug + Send + Sync {
    /// The word by which jobs ask for it.
    fn kind(&self) -> &'static str;

    /// What it offers on this machine now; asked at start and every minute.
    async fn probe(&self) -> Result<Offer, Unavailable>;

    /// Runs a job to its end. Called once for a lease, unless this process died before it said `run.remember`. After a
    /// cancellation it returns too, and what it returns says how the job took it.
    async fn run(&self, job: &Assignment, run: &Run) -> Result<(), Failure>;

    /// Goes on with a job that an earlier process of this agent began, by what it remembered.
    async fn adopt(&self, job: &Assignment, run: &Run, handle: &str) -> Result<(), Failure>;

    /// Removes what it left of a lease that is acknowledged or abandoned; of one that it never knew too.
    async fn remove(&self, lease: LeaseId);

    /// Removes what it left of all leases but these; called once at start.
    async fn sweep(&self, keep: &[LeaseId]);
}

/// Jobs at once where nothing is configured: one for each processor.
fn default_slots() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}
