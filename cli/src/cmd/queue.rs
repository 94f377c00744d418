//! `kiln queue`: what waits.

use kiln_sdk::v1::GetQueueRequest;
use serde_json::{Value, json};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    json,
    table::Table,
    time,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also list the jobs that wait longest
    #[arg(long)]
    jobs: bool,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let queue = client.get_queue(GetQueueRequest {}).await?;
        if cx.printer.is_json() {
            let projects = queue.projects.iter().map(|project| {
                json!({
                    "project": project.project,
                    "queued": project.queued,
                    "running": project.running,
                    "oldest_ms": if project.oldest_ms == 0 { Value::Null } else { project.oldest_ms.into() },
                })
            });
            let oldest: Value = queue.oldest.iter().map(json::job).collect();
            cx.printer
                .json(&json!({ "projects": projects.collect::<Value>(), "oldest": oldest }))?;
            return Ok(ExitStatus::Succeeded);
        }
        if queue.projects.is_empty() {
            cx.printer.note("nothing waits and nothing runs");
            return Ok(ExitStatus::Succeeded);
        }
        let mut table = Table::new(&["PROJECT", "QUEUED", "RUNNING", "WAITS SINCE"]);
        for project in &queue.projects {
            table.row([
                project.project.as_str().into(),
                project.queued.to_string().into(),
                project.running.to_string().into(),
                time::ago(project.oldest_ms).into(),
            ]);
        }
        cx.printer.table(&table)?;
        if self.jobs && !queue.oldest.is_empty() {
            let mut table = Table::new(&["JOB", "NAME", "BACKEND", "WAITS SINCE"]);
            for job in &queue.oldest {
                let since = time::ago(job.queued_ms);
                table.row([
                    job.id.as_str().into(),
                    job.name.as_str().into(),
                    job.backend.as_str().into(),
                    since.into(),
                ]);
            }
            cx.printer.line("")?;
            cx.printer.table(&table)?;
        }
        Ok(ExitStatus::Succeeded)
    }
}
