//! Jobs as containers of a Docker engine. The agent creates and removes them; a supervisor starts one, reads its output
//! and waits for its end, so that all of it survives the agent.

mod create;
mod engine;
mod image;
mod probe;
mod reclaim;
mod registry;
mod user;

use std::{
    collections::HashMap,
    fs::{DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::PathBuf,
};

use async_trait::async_trait;
use bollard::{
    errors::Error,
    query_parameters::{
        ContainerArchiveInfoOptions, CreateContainerOptions, ListContainersOptions,
        RemoveContainerOptions,
    },
};
use kiln_core::{
    agent::Offer,
    id::LeaseId,
    session::Assignment,
    spec::{Container, JobSpec},
};
use rustix::fs::{CWD, Mode, mkfifoat};
use serde::{Deserialize, Serialize};

use super::{Backend, Failure, Unavailable, default_slots, job, secrets::Secrets};
use crate::{
    run::Run,
    supervisor::{Outlet, Task, Work},
};
use create::{AGENT_LABEL, Folders, LEASE_LABEL};

pub use engine::Engine;

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// Of an engine's message.
const MAX_MESSAGE_CHARS: usize = 300;

/// Which engine, and how many jobs at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub enabled: bool,
    pub slots: u32,
    /// `unix:///path`; empty: DOCKER_HOST, else the usual socket.
    pub host: String,
    /// A file as `docker login` writes it.
    pub registry_auth: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, slots: default_slots(), host: String::new(), registry_auth: None }
    }
}

impl Config {
    fn engine(&self) -> Engine {
        if !self.host.is_empty() {
            return Engine::new(&self.host);
        }
        Engine::new(std::env::var("DOCKER_HOST").unwrap_or_else(|_| DEFAULT_HOST.to_owned()))
    }
}

/// The backend.
#[derive(Debug)]
pub struct Docker {
    config: Config,
    owner: String,
    secrets: Secrets,
}

/// What is remembered of a job.
#[derive(Debug, Serialize, Deserialize)]
struct Handle {
    container: String,
    output: Outlet,
}

impl Docker {
    pub fn new(config: Config, owner: &str) -> Self {
        let secrets = Secrets::contained("docker", owner);
        Self { config, owner: owner.to_owned(), secrets }
    }

    fn connect(&self) -> Result<bollard::Docker, Failure> {
        let engine = self.config.engine();
        let host = engine.host();
        if !host.starts_with("unix://") && !host.starts_with('/') {
            return Err(Failure::infra(format!("engine {host}: only unix:// is supported")));
        }
        engine.connect().map_err(|error| Failure::infra(format!("engine {host}: {error}")))
    }

    /// Makes the container, and everything that it needs, up to its start.
    async fn prepare(&self, job: &Assignment, run: &Run) -> Result<Handle, Failure> {
        let docker = self.connect()?;
        let container = job.spec.container.as_ref();
        let container = container.ok_or_else(|| {
            Failure::user("the docker backend needs spec.container.image: name an image")
        })?;
        run.folder.make_workspace().map_err(|error| files(&error))?;
        run.stage("image").await.map_err(|error| files(&error))?;
        let image =
            image::ensure(&docker, &self.config, run, &container.image, container.pull).await?;
        let files = self.files(&job.spec, run).map_err(|error| files(&error))?;
        let handle = self.create(&docker, job, container, run, &files).await?;
        let user = match container.user.as_str() {
            "" => image.config.and_then(|config| config.user).unwrap_or_default(),
            user => user.to_owned(),
        };
        let ids = user::resolve(&docker, &handle.container, &user).await;
        let workspace = run.workspace();
        let handed = tokio::task::spawn_blocking(move || user::hand_over(&workspace, ids)).await;
        handed.map_err(io::Error::other).flatten().map_err(|error| {
            Failure::infra(format!("the workspace can't be given to user {user}: {error}"))
        })?;
        Ok(handle)
    }

    /// Script, FIFO and secrets.
    fn files(&self, spec: &JobSpec, run: &Run) -> io::Result<Files> {
        let kiln = run.dir().join("kiln");
        let _from_before = std::fs::remove_dir_all(&kiln);
        DirBuilder::new().mode(0o755).create(&kiln)?;
        std::fs::set_permissions(&kiln, Permissions::from_mode(0o755))?;
        let argv = job::argv(spec, &kiln.join("script"), &format!("{}/script", create::KILN))?;
        let fifo = kiln.join("out");
        mkfifoat(CWD, &fifo, Mode::from_raw_mode(0o622))?;
        // The container's user is another one; nobody else can reach it.
        std::fs::set_permissions(&fifo, Permissions::from_mode(0o622))?;
        let secrets = self.secrets.write(run.lease, &run.secrets)?;
        Ok(Files { argv, kiln, fifo, secrets })
    }

    async fn create(
        &self,
        docker: &bollard::Docker,
        job: &Assignment,
        container: &Container,
        run: &Run,
        files: &Files,
    ) -> Result<Handle, Failure> {
        let workspace = run.workspace();
        let folders =
            Folders { workspace: &workspace, kiln: &files.kiln, secrets: files.secrets.as_deref() };
        let name = name(job.lease);
        let create = async |redirect| {
            // One from before a crash, of which nothing was remembered, was never started.
            self.remove_container(docker, &name).await;
            let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
            let body = create::body(job, container, &self.owner, &files.argv, &folders, redirect);
            docker.create_container(Some(options), body).await.map_err(|error| refused(&error))
        };
        let made = create(true).await?;
        let shell = ContainerArchiveInfoOptions { path: "/bin/sh".to_owned() };
        match docker.get_container_archive_info(&made.id, Some(shell)).await {
            Ok(_) => Ok(Handle { container: made.id, output: Outlet::Fifo(files.fifo.clone()) }),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
                if files.argv.first().is_some_and(|program| program == "/bin/sh") {
                    let image = &container.image;
                    return Err(Failure::user(format!(
                        "image {image} has no /bin/sh: give a command, or a script with a \"#!\" line"
                    )));
                }
                Ok(Handle { container: create(false).await?.id, output: Outlet::Attach })
            }
            Err(error) => Err(engine_error("looking for a shell in the image", &error)),
        }
    }

    /// Goes on from a container that is made: a supervisor of before is waited for, else one is started.
    async fn supervise(&self, job: &Assignment, run: &Run, handle: Handle) -> Result<(), Failure> {
        let task = Task {
            work: Work::Container {
                engine: self.config.engine(),
                id: handle.container,
                output: handle.output,
            },
            log_bytes: job.spec.resources.log_bytes,
            stall_ms: job.spec.timeouts.stall_ms,
        };
        let exit = run.spawn(task).await;
        self.secrets.remove(job.lease);
        if let (Ok(docker), Some(container)) = (self.connect(), &job.spec.container) {
            let image = registry::with_tag(&container.image);
            let labels = create::labels(job.lease, &self.owner);
            reclaim::reclaim(&docker, &image, labels, &run.workspace()).await;
        }
        exit?.into_result()
    }

    async fn remove_container(&self, docker: &bollard::Docker, name: &str) {
        let options =
            RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
        match docker.remove_container(name, Some(options)).await {
            Ok(()) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => {}
            Err(error) => tracing::warn!(container = name, %error, "a container stays behind"),
        }
    }
}

/// What [`Docker::files`] made.
#[derive(Debug)]
struct Files {
    argv: Vec<String>,
    kiln: PathBuf,
    fifo: PathBuf,
    secrets: Option<PathBuf>,
}

#[async_trait]
impl Backend for Docker {
    fn kind(&self) -> &'static str {
        "docker"
    }

    async fn probe(&self) -> Result<Offer, Unavailable> {
        let docker = self.connect().map_err(|failure| Unavailable(failure.message))?;
        probe::probe(&docker, &self.config).await
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<(), Failure> {
        let handle = self.prepare(job, run).await?;
        let text = serde_json::to_string(&handle).map_err(|error| files(&error.into()))?;
        run.remember(&text).await.map_err(|error| files(&error))?;
        run.stage("script").await.map_err(|error| files(&error))?;
        self.supervise(job, run, handle).await
    }

    async fn adopt(&self, job: &Assignment, run: &Run, handle: &str) -> Result<(), Failure> {
        let handle = serde_json::from_str(handle)
            .map_err(|error| Failure::infra(format!("the lease's handle: {error}")))?;
        self.supervise(job, run, handle).await
    }

    async fn remove(&self, lease: LeaseId) {
        self.secrets.remove(lease);
        if let Ok(docker) = self.connect() {
            self.remove_container(&docker, &name(lease)).await;
        }
    }

    async fn sweep(&self, keep: &[LeaseId]) {
        self.secrets.sweep(keep);
        let keep: Vec<String> = keep.iter().map(ToString::to_string).collect();
        let Ok(docker) = self.connect() else { return };
        let options = ListContainersOptions {
            all: true,
            filters: Some(HashMap::from([(
                "label".to_owned(),
                vec![format!("{AGENT_LABEL}={}", self.owner)],
            )])),
            ..ListContainersOptions::default()
        };
        for container in docker.list_containers(Some(options)).await.unwrap_or_default() {
            let lease = container.labels.as_ref().and_then(|labels| labels.get(LEASE_LABEL));
            if let Some(id) =
                container.id.filter(|_| lease.is_none_or(|lease| !keep.contains(lease)))
            {
                self.remove_container(&docker, &id).await;
            }
        }
    }
}

/// Unique, so that a lease has one container at most.
fn name(lease: LeaseId) -> String {
    format!("kiln-{lease}")
}

fn files(error: &io::Error) -> Failure {
    Failure::infra(format!("the job's files can't be written: {error}"))
}

fn refused(error: &Error) -> Failure {
    match error {
        // What the engine does not accept, the spec asked for.
        Error::DockerResponseServerError { status_code: 400, message } => {
            Failure::user(format!("the engine refuses the container: {}", end(message)))
        }
        other => engine_error("making the container", other),
    }
}

fn engine_error(doing: &str, error: &Error) -> Failure {
    Failure::infra(format!("{doing}: {}", end(&error.to_string())))
}

/// The end of a message: engines begin with what they were doing and end with what went wrong.
pub(crate) fn end(message: &str) -> String {
    let message = message.trim();
    let skip = message.chars().count().saturating_sub(MAX_MESSAGE_CHARS);
    message.chars().skip(skip).collect()
}
