//! What a supervisor is told, and what it leaves.

use std::{collections::BTreeMap, path::PathBuf};

use kiln_core::{Millis, outcome::FailureKind};
use serde::{Deserialize, Serialize};

use crate::backend::Failure;

/// Who the supervisor is.
pub const IDENTITY_FILE: &str = "supervisor.pid";

/// The content of `supervisor.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The lease folder.
    pub dir: PathBuf,
    pub grace_ms: Millis,
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

/// What the supervisor starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    Process { argv: Vec<String>, env: BTreeMap<String, String>, cwd: PathBuf },
}

/// The content of `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub ending: Ending,
    /// Of a process that ended by itself.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The kernel ended a process of it for want of memory.
    pub oom: bool,
    pub message: String,
}

/// Why it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By itself.
    Exited,
    /// It printed nothing for too long.
    Stalled,
    /// The agent asked for it.
    Cancelled,
    /// Its program could not be started.
    NotStarted,
    /// What is around it failed: no space for the log, no engine.
    Broken,
}

impl Exit {
    /// The job's outcome; of a cancelled one the executor knows better why.
    pub fn into_result(self) -> Result<(), Failure> {
        Err(Failure { kind: FailureKind::Infra, exit_code: self.code, message: self.message })
    }
}
