//! `kiln show`: a build and its jobs.

use serde_json::{Value, json};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    json, names,
    printer::Style,
    table::Table,
    time, words,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id of the build, its beginning, or "last"
    #[arg(value_name = "BUILD", default_value = "last")]
    build: String,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let answer = names::build(&client, &self.build).await?;
        let build = answer.build.unwrap_or_default();
        if cx.printer.is_json() {
            let jobs: Value = answer.jobs.iter().map(json::job).collect();
            cx.printer.json(&json!({ "build": json::build(&build), "jobs": jobs }))?;
            return Ok(ExitStatus::Succeeded);
        }
        let state = words::build_state(build.state());
        let mut facts = vec![
            ("build", build.id.clone()),
            ("title", build.title.clone()),
            ("project", build.project.clone()),
            ("state", cx.printer.out_paint(words::build_style(build.state()), &state)),
            ("submitted", format!("{} by {}", time::moment(build.created_ms), build.submitter)),
            ("took", time::took(build.created_ms, build.finished_ms)),
        ];
        let mut annotations: Vec<_> = build.annotations.iter().collect();
        annotations.sort();
        facts.extend(
            annotations.into_iter().map(|(key, value)| ("note", format!("{key} = {value}"))),
        );
        for (name, value) in facts {
            let name = cx.printer.out_paint(Style::Dim, &format!("{name:<10}"));
            cx.printer.line(format!("{name} {value}"))?;
        }
        cx.printer.line("")?;
        let mut table = Table::new(&["JOB", "STATE", "AGENT", "TRY", "TOOK", "ID", "OUTCOME"]);
        for job in &answer.jobs {
            table.row([
                job.name.as_str().into(),
                words::job_cell(job),
                job.agent.as_str().into(),
                job.attempt.to_string().into(),
                time::took(job.started_ms, job.finished_ms).into(),
                job.id.as_str().into(),
                words::outcome(job.outcome.as_ref()).into(),
            ]);
        }
        cx.printer.table(&table)?;
        Ok(ExitStatus::Succeeded)
    }
}
