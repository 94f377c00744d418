//! `kiln completion`: a script for a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{
    args::Cli,
    cmd::{Cx, Result},
    exit::ExitStatus,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Args {
    pub(crate) fn run(self, cx: &Cx<'_>) -> Result {
        let mut script = vec![];
        clap_complete::generate(self.shell, &mut Cli::command(), "kiln", &mut script);
        cx.printer.bytes(&script)?;
        Ok(ExitStatus::Succeeded)
    }
}
