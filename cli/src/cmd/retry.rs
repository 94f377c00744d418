//! `kiln retry`: a new round of what did not succeed.

use kiln_sdk::v1::{RetryBuildRequest, RetryTarget};
use serde_json::json;

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    follow, json, names,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id of the build, its beginning, or "last"
    #[arg(value_name = "BUILD")]
    build: String,
    /// Only this job and what depends on it; repeat for more
    #[arg(long, value_name = "NAME")]
    job: Vec<String>,
    /// Follow the build until it is done; the exit code is the build's
    #[arg(long)]
    watch: bool,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let seen = names::build(&client, &self.build).await?;
        let build = seen.build.unwrap_or_default().id;
        let target = |name: &String| {
            let job = names::named(&seen.jobs, name)?;
            Ok(RetryTarget { job: job.id.clone(), round: job.round })
        };
        let targets = self.job.iter().map(target).collect::<Result<Vec<_>>>()?;
        let answer =
            client.retry_build(RetryBuildRequest { build: build.clone(), targets }).await?;
        if cx.printer.is_json() && !self.watch {
            let build = answer.build.as_ref().map(json::build);
            cx.printer.json(&json!({ "build": build, "jobs": answer.jobs }))?;
            return Ok(ExitStatus::Succeeded);
        }
        if self.watch {
            return follow::build(cx, &client, &build).await;
        }
        cx.printer.line(format!("{build}: {} jobs run again", answer.jobs.len()))?;
        Ok(ExitStatus::Succeeded)
    }
}
