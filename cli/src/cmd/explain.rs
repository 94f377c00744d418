//! `kiln explain`: why a job waits, or why it failed.

use kiln_sdk::v1::{ExplainJobRequest, ExplainJobResponse, Reason};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    json, names,
    printer::Style,
    words,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id of the job, BUILD/NAME, or a build of one job
    #[arg(value_name = "JOB", default_value = "last")]
    job: String,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let job = names::job(&client, &self.job).await?.id;
        let answer = client.explain_job(ExplainJobRequest { job }).await?;
        if cx.printer.is_json() {
            cx.printer.json(&json::explanation(&answer))?;
        } else {
            show(cx, &answer)?;
        }
        Ok(ExitStatus::Succeeded)
    }
}

fn show(cx: &Cx<'_>, answer: &ExplainJobResponse) -> Result<()> {
    let printer = cx.printer;
    if let Some(job) = &answer.job {
        let word = words::job_state(job.state());
        let state = printer.out_paint(words::job_style(job.state()), &word);
        // A summary may begin with the state itself: "failed (user): exit code 7".
        let rest = match answer.summary.strip_prefix(&word) {
            Some(rest) => rest.to_owned(),
            None => format!(": {}", answer.summary),
        };
        printer.line(format!("job {} {state}{rest}", job.name))?;
    } else {
        printer.line(&answer.summary)?;
    }
    // What the summary says already is not said twice.
    for reason in answer.reasons.iter().filter(|reason| reason.message != answer.summary) {
        printer.line(format!("  {} ({})", reason.message, reason.code))?;
    }
    for verdict in &answer.agents {
        let fits = if verdict.fits { "fits" } else { "does not fit" };
        let why = said(&verdict.reasons);
        let gap = if why.is_empty() { "" } else { ": " };
        let agent = printer.out_paint(Style::Bold, &verdict.agent);
        printer.line(format!("  agent {agent} {fits}{gap}{why}"))?;
    }
    for line in &answer.lines {
        printer.line(format!("  {} {line}", printer.out_paint(Style::Dim, "|")))?;
    }
    Ok(())
}

fn said(reasons: &[Reason]) -> String {
    let told: Vec<&str> = reasons.iter().map(|reason| reason.message.as_str()).collect();
    told.join("; ")
}
