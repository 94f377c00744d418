//! What to build, as a client submits it. `validate` names each field that is wrong; a plan is made of valid ones only.

mod validate;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Millis, outcome::RetryPolicy};

pub use validate::{MAX_JOBS, is_name, validate};

/// One field that is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path in the request: `spec.jobs[2].timeouts.total_ms`.
    pub field: String,
    pub message: String,
}

impl Violation {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// A submission: a graph of jobs over one source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildSpec {
    pub title: String,
    pub source: Option<Source>,
    pub jobs: Vec<JobSpec>,
    pub priority: i32,
    pub annotations: BTreeMap<String, String>,
}

/// What an agent places into the workspace before a job runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A commit of a git repository; an empty ref is the default branch.
    Git { url: String, r#ref: String, submodules: bool },
    /// A tar archive compressed with zstd, by digest.
    Archive { sha256: String, size: u64 },
}

/// One job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobSpec {
    pub name: String,
    pub needs: Vec<Need>,
    pub backend: String,
    pub script: String,
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub matrix: BTreeMap<String, Vec<String>>,
    pub allow_failure: bool,
    pub retry: RetryPolicy,
    pub timeouts: Timeouts,
    pub constraints: Constraints,
    pub resources: Resources,
    pub container: Option<Container>,
    pub concurrency: Option<ConcurrencyGroup>,
    pub priority: i32,
    pub artifacts: Vec<String>,
    pub source: Option<Source>,
    pub no_source: bool,
    /// Names of the secrets that it gets; never a value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
}

/// An edge of the graph.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    pub job: String,
    /// Place its artifacts into the workspace.
    pub artifacts: bool,
}

/// How long a job may take, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    pub queue_ms: Millis,
    pub total_ms: Millis,
    pub stall_ms: Millis,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { queue_ms: 24 * 3_600_000, total_ms: 6 * 3_600_000, stall_ms: 3_600_000 }
    }
}

/// What an agent must offer to get the job.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Constraints {
    /// Empty: any.
    pub arch: String,
    /// Wanted labels; an empty value is any value.
    pub labels: BTreeMap<String, String>,
    pub min_cpu_millis: u32,
    pub min_memory_bytes: u64,
    pub min_disk_bytes: u64,
}

/// What a job may use. Zero of the first three: the agent's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub pids: u32,
    pub log_bytes: u64,
    pub artifact_bytes: u64,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu_millis: 0,
            memory_bytes: 0,
            pids: 0,
            log_bytes: 100 << 20,
            artifact_bytes: 1 << 30,
        }
    }
}

/// How a container backend isolates the job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    pub image: String,
    pub pull: PullPolicy,
    pub network: Network,
    pub read_only: bool,
    pub tmpfs: BTreeMap<String, u64>,
    pub user: String,
    pub cap_drop: Vec<String>,
    pub allow_new_privileges: bool,
}

/// When an image is fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    #[default]
    Missing,
    Always,
    Never,
}

/// The network of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    #[default]
    Bridge,
    None,
}

/// Jobs of a project that may not all run at the same time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConcurrencyGroup {
    pub name: String,
    pub limit: u32,
}

impl JobSpec {
    /// What the agent's backend must be able to do.
    pub fn features(&self) -> BTreeSet<String> {
        let mut features = BTreeSet::new();
        let mut ask = |wanted: bool, feature: &str| {
            if wanted {
                features.insert(feature.to_owned());
            }
        };
        ask(self.resources.cpu_millis > 0, "cpu-limit");
        ask(self.resources.memory_bytes > 0, "memory-limit");
        ask(self.resources.pids > 0, "pids-limit");
        if let Some(container) = &self.container {
            ask(true, "container");
            ask(container.network == Network::None, "network-none");
            ask(container.read_only, "read-only");
            ask(!container.tmpfs.is_empty(), "tmpfs");
            ask(!container.user.is_empty(), "user");
            ask(!container.cap_drop.is_empty(), "cap-drop");
        }
        features
    }

    /// It holds a group alone, so two of its jobs must never overlap.
    pub fn is_exclusive(&self) -> bool {
        self.concurrency.as_ref().is_some_and(|group| group.limit == 1)
    }
}
