//! `kiln cancel`: end a build or one of its jobs.

use kiln_sdk::v1::CancelBuildRequest;

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    json, names, words,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A build, a job's id, or BUILD/NAME
    #[arg(value_name = "BUILD|JOB")]
    target: String,
    /// Why; kept with the build's events
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let one = self.target.starts_with("job_") || self.target.contains('/');
        let (build, job) = if one {
            let job = names::job(&client, &self.target).await?;
            (job.build, job.id)
        } else {
            (names::build_id(&client, &self.target).await?, String::new())
        };
        let reason = self.reason.unwrap_or_default();
        let answer = client.cancel_build(CancelBuildRequest { build, job, reason }).await?;
        let build = answer.build.unwrap_or_default();
        if cx.printer.is_json() {
            cx.printer.json(&json::build(&build))?;
        } else {
            let state = words::build_state(build.state());
            let note = if words::is_done(build.state()) { "" } else { ", ending" };
            cx.printer.line(format!("{} {state}{note}", build.id))?;
        }
        Ok(ExitStatus::Succeeded)
    }
}
