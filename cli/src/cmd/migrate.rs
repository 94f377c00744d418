//! stub

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    #[expect(clippy::unused_async, reason = "stub")]
    pub(crate) async fn run(self, _cx: &Cx<'_>) -> Result {
        Ok(ExitStatus::Succeeded)
    }
}
