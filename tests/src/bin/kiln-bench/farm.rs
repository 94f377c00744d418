//! A server, and agents in this process, reached over gRPC as any other.

use std::{
    fs,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
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
    v1::{
        Agent, AgentState, BuildSpec, CreateTokenRequest, JobSpec, ListAgentsRequest,
        ListBuildsRequest, Role, SubmitBuildRequest,
    },
};
use kiln_server::config::Limits;
use tempfile::TempDir;
use tokio::{sync::Semaphore, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::server::{self, Program};

/// How long anything may take before the run is given up.
pub(crate) const PATIENCE: Duration = Duration::from_mins(10);

/// A backend whose jobs do nothing; everything around them is real. There is no process to adopt, so that it remembers
/// none.
#[derive(Debug)]
pub(crate) struct Noop {
    /// Jobs that ran.
    pub(crate) runs: AtomicUsize,
    /// Jobs with a script wait for one.
    pub(crate) gate: Semaphore,
}

#[async_trait]
impl Backend for Noop {
    fn kind(&self) -> &'static str {
        "noop"
    }

    async fn probe(&self) -> Result<Offer, Unavailable> {
        Ok(Offer { slots: 64, operations: ["script".to_owned()].into(), ..Offer::default() })
    }

    async fn run(&self, job: &Assignment, _: &Run) -> Result<(), Failure> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        if !job.spec.script.is_empty() {
            let place = self.gate.acquire().await;
            place.map_err(|error| Failure::infra(error.to_string()))?.forget();
        }
        Ok(())
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
    pub(crate) server: Program,
    pub(crate) noop: Arc<Noop>,
    config: String,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Farm {
    /// `database` as in the server's configuration; empty: SQLite.
    pub(crate) async fn start(database: &str) -> Result<Self> {
        let folder = TempDir::new()?;
        let path = folder.path().join("kiln.toml");
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let data = folder.path().join("server");
        // One token of this machine asks for all that a whole farm would.
        let limits = toml::to_string(&Limits::unlimited())?;
        let text = format!(
            "listen = \"127.0.0.1:{port}\"\nauth = false\ndata = \"{}\"\n\
             database = {database:?}\n[limits]\n{limits}",
            data.display()
        );
        fs::write(&path, text)?;
        let config = path.to_string_lossy().into_owned();
        let server = Program::start(&["server", "--config", &config], folder.path())?;
        let client = Client::connect(Options::new(&server.url)).await?;
        let noop = Noop { runs: AtomicUsize::new(0), gate: Semaphore::new(0) };
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        Ok(Self { client, folder, server, noop: Arc::new(noop), config, tasks, shutdown })
    }

    /// Kills the server and starts another one on its data.
    pub(crate) fn restart(self) -> Result<Self> {
        self.server.kill()?;
        let server = Program::start(&["server", "--config", &self.config], self.folder.path())?;
        Ok(Self { server, ..self })
    }

    /// Adds an agent with the real backends.
    pub(crate) async fn agent(
        &self,
        name: &str,
        backends: kiln_agent::backend::Config,
    ) -> Result<()> {
        let identity = self.enroll(name).await?;
        let all = kiln_agent::backend::all(&backends, &identity.agent.to_string());
        self.run(name, identity, all)
    }

    /// Adds an agent whose jobs do nothing.
    pub(crate) async fn noop_agent(&self, name: &str) -> Result<()> {
        let identity = self.enroll(name).await?;
        self.run(name, identity, vec![self.noop.clone()])
    }

    async fn enroll(&self, name: &str) -> Result<Identity> {
        let request = CreateTokenRequest {
            name: name.to_owned(),
            role: Role::Enroller.into(),
            ..Default::default()
        };
        let token = self.client.create_token(request).await?.secret;
        let address = Address { url: self.server.url.clone(), ..Address::default() };
        Ok(kiln_agent::enroll(&address, &token, name, &self.folder.path().join(name)).await?)
    }

    fn run(&self, name: &str, identity: Identity, backends: Vec<Arc<dyn Backend>>) -> Result<()> {
        let config = kiln_agent::Config {
            server: self.server.url.clone(),
            data_dir: self.folder.path().join(name),
            ..kiln_agent::Config::default()
        };
        let (supervisor, shutdown) = (server::kiln()?, self.shutdown.clone());
        self.tasks.spawn(async move {
            if let Err(error) =
                kiln_agent::run_with(config, &identity, backends, supervisor, shutdown).await
            {
                super::report::trouble(&format!("an agent failed: {error}"));
            }
        });
        Ok(())
    }

    /// Until so many agents are connected that were heard since a moment.
    pub(crate) async fn connected(&self, count: usize, since_ms: i64) -> Result<()> {
        let start = Instant::now();
        loop {
            let agents = self.client.list_agents(ListAgentsRequest {}).await;
            let online =
                |agent: &&Agent| agent.state() == AgentState::Online && agent.seen_ms >= since_ms;
            if agents.is_ok_and(|all| all.agents.iter().filter(online).count() >= count) {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed() < PATIENCE, "the agents do not connect");
            sleep(Duration::from_millis(20)).await;
        }
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
            anyhow::ensure!(start.elapsed() < PATIENCE, "the queue does not drain");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.server.stop()
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
