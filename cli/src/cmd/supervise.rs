//! `kiln supervise`, hidden: what an agent starts for each job. It outlives the agent, so it has no runtime of ours.

use std::{path::PathBuf, process::ExitCode};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to do: supervisor.json in the folder of the lease
    spec: PathBuf,
}

impl Args {
    pub(crate) fn run(self) -> ExitCode {
        kiln_agent::supervise(&self.spec)
    }
}
