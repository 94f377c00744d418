//! What the process says when it ends.

use std::process::ExitCode;

use kiln_sdk::v1::{BuildState, Job};

/// How a command ended. The numbers are part of the interface: see docs/cli.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// Everything went well.
    Succeeded,
    /// The build failed.
    Failed,
    /// The command can't be meant like this.
    Usage,
    /// The build was cancelled.
    Cancelled,
    /// No answer, or an internal error, of the server or of this program.
    Unavailable,
    /// The server evicted this agent: it must be enrolled anew before it can run.
    Evicted,
    /// `kiln run` of one job that ended by itself.
    Program(u8),
}

impl ExitStatus {
    pub(crate) const fn of_build(state: BuildState) -> Self {
        match state {
            BuildState::Succeeded => Self::Succeeded,
            BuildState::Cancelled => Self::Cancelled,
            BuildState::Failed => Self::Failed,
            BuildState::Unspecified | BuildState::Queued | BuildState::Running => Self::Unavailable,
        }
    }

    /// The program's own code where the build is one job that ended with one.
    pub(crate) fn of_run(state: BuildState, jobs: &[Job]) -> Self {
        let code = match (state, jobs) {
            (BuildState::Failed, [job]) => job.outcome.as_ref().and_then(|o| o.exit_code),
            _ => None,
        };
        let code = code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
        code.map_or_else(|| Self::of_build(state), Self::Program)
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(match status {
            ExitStatus::Succeeded => 0,
            ExitStatus::Failed => 1,
            ExitStatus::Usage => 2,
            ExitStatus::Cancelled => 3,
            ExitStatus::Unavailable => 4,
            ExitStatus::Evicted => 5,
            ExitStatus::Program(code) => code,
        })
    }
}

/// Help, version and wrong usage, as clap words them.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let status = if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Succeeded };
    // A reader that is gone does not change what the command line was.
    let _ = error.print();
    status.into()
}
