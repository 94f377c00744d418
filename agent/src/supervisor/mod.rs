//! One process per job that outlives the agent: parent of the job's process or reader of its container's output, only
//! writer of the log spool, keeper of the size cap and the stall clock. It leaves how the job ended in a file.
//!
//! The agent's side is [`client`]; the process itself is [`supervise`]. They speak through the lease folder alone:
//! `supervisor.json` (what to do), `supervisor.pid` (who does it), `cancel` (please end), `exit.json` (how it ended).

pub(crate) mod client;
mod spec;

use std::{path::Path, process::ExitCode};

pub use spec::{Ending, Exit, IDENTITY_FILE, Spec, Task, Work};

/// The whole life of a supervisor; `spec` is the path of `supervisor.json`.
pub fn supervise(_spec: &Path) -> ExitCode {
    ExitCode::FAILURE
}
