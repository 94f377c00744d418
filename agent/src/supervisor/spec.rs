//! What a supervisor is told.

use std::{collections::BTreeMap, path::PathBuf};

use kiln_core::Millis;
use serde::{Deserialize, Serialize};

use crate::{backend::docker::Engine, cgroup::Containment};

/// The content of `supervisor.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The lease folder.
    pub dir: PathBuf,
    pub grace_ms: Millis,
    /// Without a word of the server, passed on by the agent, for so long the job ends; zero: never.
    #[serde(default)]
    pub lifeline_ms: Millis,
    pub task: Task,
}

/// What to run and within which bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub work: Work,
    /// Bytes of log kept.
    pub log_bytes: u64,
    /// Without output for so long it is ended; zero: never.
    pub stall_ms: Millis,
}

/// Where a container's output comes out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outlet {
    /// A FIFO that the container has as a file: both outputs in their order.
    Fifo(PathBuf),
    /// The engine's stream, for images that have no shell to redirect with: two pipes, their order is not kept.
    Attach,
}

/// What the supervisor starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    Process {
        /// Program and arguments; never empty.
        argv: Vec<String>,
        /// All of it.
        env: BTreeMap<String, String>,
        cwd: PathBuf,
        containment: Containment,
    },
    /// A container that is created and not started.
    Container { engine: Engine, id: String, output: Outlet },
}
