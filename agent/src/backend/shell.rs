//! Jobs as processes of this machine, run by the agent's own user. For machines whose jobs are trusted: what holds them
//! together keeps them from outliving their end and their limits, not from reading what the user can read.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use kiln_core::{agent::Offer, id::LeaseId, session::Assignment};
use serde::{Deserialize, Serialize};

use super::{Backend, Failure, Unavailable, default_slots, job, secrets::Secrets};
use crate::{
    cgroup::{Host, Limits, Want},
    run::Run,
    supervisor::{Task, Work},
};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where it is on and how many jobs it runs at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub enabled: bool,
    pub slots: u32,
    pub containment: Want,
    /// Limits of a job that names none; zero is no limit.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            slots: default_slots(),
            containment: Want::default(),
            limits: Limits::default(),
        }
    }
}

/// The backend.
#[derive(Debug)]
pub struct Shell {
    config: Config,
    owner: String,
    host: Arc<OnceLock<Host>>,
    secrets: Secrets,
}

impl Shell {
    pub fn new(config: Config, owner: &str) -> Self {
        let secrets = Secrets::own("shell", owner);
        Self { config, owner: owner.to_owned(), host: Arc::default(), secrets }
    }

    /// Does something that blocks with what this machine can do, which is found out once.
    async fn with_host<T, F>(&self, work: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Host) -> T + Send + 'static,
    {
        let (host, want) = (Arc::clone(&self.host), self.config.containment);
        let work = move || work(host.get_or_init(|| Host::detect(want)));
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
    }

    /// Other agents of this machine make groups at the same place.
    fn group(&self, lease: LeaseId) -> String {
        format!("{}-{lease}", self.owner)
    }

    fn limits(&self, job: &Assignment) -> Limits {
        let own = job.spec.resources;
        Limits { cpu_millis: own.cpu_millis, memory_bytes: own.memory_bytes, pids: own.pids }
            .or(self.config.limits)
    }

    async fn task(&self, job: &Assignment, run: &Run) -> io::Result<Task> {
        let workspace = run.folder.make_workspace()?;
        let secrets = self.secrets.write(job.lease, &run.secrets)?;
        let secrets = secrets.map(|path| path.to_string_lossy().into_owned());
        let script = run.dir().join("script");
        let argv = job::argv(&job.spec, &script, &script.to_string_lossy())?;
        let mut env = base(run)?;
        env.extend(job::environment(job, &workspace.to_string_lossy(), secrets.as_deref()));
        let containment = self.with_host({
            let (group, limits) = (self.group(job.lease), self.limits(job));
            move |host| host.contain(&group, limits)
        });
        Ok(Task {
            work: Work::Process { argv, env, cwd: workspace, containment: containment.await? },
            log_bytes: job.spec.resources.log_bytes,
            stall_ms: job.spec.timeouts.stall_ms,
        })
    }
}

/// The job gets nothing of the agent's own environment: it may hold credentials.
fn base(run: &Run) -> io::Result<BTreeMap<String, String>> {
    let tmp = run.folder.make_tmp()?.to_string_lossy().into_owned();
    let env =
        [("PATH", PATH), ("HOME", &tmp), ("TMPDIR", &tmp), ("LANG", "C.UTF-8"), ("TERM", "dumb")];
    Ok(env.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
}

#[async_trait]
impl Backend for Shell {
    fn kind(&self) -> &'static str {
        "shell"
    }

    async fn probe(&self) -> Result<Offer, Unavailable> {
        let (slots, want) = (self.config.slots, self.config.containment);
        let offer = self.with_host(move |host| {
            if !host.is(want) {
                let mode = host.mode();
                return Err(format!("containment = {want:?} does not work here, only: {mode}"));
            }
            Ok(Offer {
                slots,
                features: host.features(),
                operations: ["script".to_owned()].into(),
                facts: [("containment".to_owned(), host.mode().to_owned())].into(),
                unavailable: None,
            })
        });
        offer.await.map_err(|error| error.to_string()).flatten().map_err(Unavailable)
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<(), Failure> {
        let task = self.task(job, run).await.map_err(|error| {
            Failure::infra(format!("the job's files can't be written: {error}"))
        })?;
        run.stage("script").await.map_err(|error| Failure::infra(error.to_string()))?;
        let exit = run.spawn(task).await;
        self.secrets.remove(job.lease);
        exit?.into_result()
    }

    async fn adopt(&self, job: &Assignment, run: &Run, handle: &str) -> Result<(), Failure> {
        let exit = run.reattach(handle).await;
        self.secrets.remove(job.lease);
        exit?.into_result()
    }

    async fn remove(&self, lease: LeaseId) {
        self.secrets.remove(lease);
        let group = self.group(lease);
        let _nothing_left = self.with_host(move |host| host.sweep(&group, &[])).await;
    }

    async fn sweep(&self, keep: &[LeaseId]) {
        self.secrets.sweep(keep);
        let keep: Vec<_> = keep.iter().map(|&lease| self.group(lease)).collect();
        let prefix = format!("{}-", self.owner);
        let _nothing_left = self.with_host(move |host| host.sweep(&prefix, &keep)).await;
    }
}
