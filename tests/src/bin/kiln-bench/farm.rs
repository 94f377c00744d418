//! A server and agents in this process, reached over gRPC as any other.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use kiln_agent::{
    Address, Identity,
    backend::{Backend, Failure, Unavailable},
    run::Run,
};
use kiln_core::{agent::Offer, id::LeaseId, session::Assignment};
use kiln_sdk::{
    Client, Options,
    v1::{BuildSpec, CreateTokenRequest, JobSpec, ListBuildsRequest, Role, SubmitBuildRequest},
};
use kiln_server::config::Config;
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A backend whose jobs do nothing; everything around them is real.
#[derive(Debug)]
struct Noop;

#[async_trait]
impl Backend for Noop {
    fn kind(&self) -> &'static str {
        "noop"
    }

    async fn probe(&self) -> Result<Offer, Unavailable> {
        Ok(Offer { slots: 64, operations: ["script".to_owned()].into(), ..Offer::default() })
    }

    async fn run(&self, _: &Assignment, run: &Run) -> Result<(), Failure> {
        run.remember("noop").await.map_err(|error| Failure::infra(error.to_string()))
    }

    async fn adopt(&self, _: &Assignment, _: &Run, _: &str) -> Result<(), Failure> {
        Ok(())
    }

    async fn remove(&self, _: LeaseId) {}

    async fn sweep(&self, _: &[LeaseId]) {}
}

/// A running farm. Its folder goes with it.
pub(crate) struct Farm {
    pub(crate) client: Client,
    pub(crate) folder: TempDir,
    url: String,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    server: kiln_server::serve::Running,
}

impl Farm {
    /// `database` as in the server's configuration; empty: SQLite.
    pub(crate) async fn start(database: &str) -> Result<Self> {
        let folder = TempDir::new()?;
        let config = Config {
            listen: "127.0.0.1:0".parse()?,
            data_dir: folder.path().join("server"),
            database: database.to_owned(),
            auth: false,
            ..Config::default()
        };
        let shutdown = CancellationToken::new();
        let server = kiln_server::serve::serve(config, shutdown.clone()).await?;
        let url = format!("http://{}", server.addr);
        let client = Client::connect(Options::new(&url)).await?;
        Ok(Self { client, folder, url, tasks: TaskTracker::new(), shutdown, server })
    }

    /// Adds an agent; `noop` instead of the real backends.
    pub(crate) async fn agent(&self, name: &str, noop: bool) -> Result<()> {
        let request = CreateTokenRequest {
            name: name.to_owned(),
            role: Role::Enroller.into(),
            ..Default::default()
        };
        let token = self.client.create_token(request).await?.secret;
        let data_dir = self.folder.path().join(name);
        let address = Address { url: self.url.clone(), ca_pem: None };
        let identity: Identity = kiln_agent::enroll(&address, &token, name, &data_dir).await?;
        let config = kiln_agent::Config {
            server: self.url.clone(),
            data_dir,
            ..kiln_agent::Config::default()
        };
        let backends: Vec<Arc<dyn Backend>> = if noop {
            vec![Arc::new(Noop)]
        } else {
            kiln_agent::backend::all(&config.backends, &identity.agent.to_string())
        };
        let (supervisor, shutdown) = (supervisor()?, self.shutdown.clone());
        self.tasks.spawn(async move {
            if let Err(error) =
                kiln_agent::run_with(config, &identity, backends, supervisor, shutdown).await
            {
                super::report::trouble(&format!("an agent failed: {error}"));
            }
        });
        Ok(())
    }

    /// Submits a build of equal jobs and returns its id.
    pub(crate) async fn submit(&self, job: JobSpec, jobs: usize) -> Result<String> {
        submit(&self.client, job, jobs).await
    }

    /// Until no build is queued or running.
    pub(crate) async fn drain(&self) -> Result<()> {
        let start = Instant::now();
        let open = [kiln_sdk::v1::BuildState::Queued, kiln_sdk::v1::BuildState::Running];
        let states: Vec<i32> = open.into_iter().map(i32::from).collect();
        loop {
            let request =
                ListBuildsRequest { states: states.clone(), page_size: 1, ..Default::default() };
            if self.client.list_builds(request).await?.builds.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed() < Duration::from_mins(5), "the queue does not drain");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        Ok(self.server.wait().await?)
    }
}

pub(crate) async fn submit(client: &Client, job: JobSpec, jobs: usize) -> Result<String> {
    let jobs =
        (0..jobs).map(|number| JobSpec { name: format!("j{number}"), ..job.clone() }).collect();
    let spec = BuildSpec { title: "bench".to_owned(), jobs, ..Default::default() };
    let answer =
        client.submit(SubmitBuildRequest { spec: Some(spec), ..Default::default() }).await?;
    Ok(answer.build.context("no build in the answer")?.id)
}

/// A job that does nothing.
pub(crate) fn noop_job() -> JobSpec {
    JobSpec {
        name: "noop".to_owned(),
        backend: "noop".to_owned(),
        command: vec!["true".to_owned()],
        ..Default::default()
    }
}

/// A job of the shell backend.
pub(crate) fn shell_job(script: String) -> JobSpec {
    JobSpec { name: "shell".to_owned(), backend: "shell".to_owned(), script, ..Default::default() }
}

/// The program beside this one that can supervise.
fn supervisor() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.parent().unwrap_or_else(|| Path::new(".")).join("kiln");
    anyhow::ensure!(
        path.exists(),
        "{} is missing: build the workspace with the same profile",
        path.display()
    );
    Ok(path)
}

/// User and system time of this process so far.
pub(crate) fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|&at| fields.get(at)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
