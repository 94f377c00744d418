//! Following a build: bars that move on a terminal, plain lines elsewhere, one document a line as JSON.

mod bars;

use futures::TryStreamExt;
use kiln_sdk::{
    Client,
    v1::{
        BuildState, Event, GetBuildRequest, GetBuildResponse, JobChanged, JobState, event::Change,
    },
};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    failure::Failure,
    json, time, words,
};

use bars::Bars;

/// Follows until the build is done, and says how it ended.
pub(crate) async fn build(cx: &Cx<'_>, client: &Client, id: &str) -> Result {
    let seen = get(client, id).await?;
    let mut bars = cx.printer.draws().then(|| Bars::new(&seen));
    let mut events = client.watch(id, 0);
    let created = seen.build.unwrap_or_default().created_ms;
    while let Some(event) = events.try_next().await? {
        match &mut bars {
            Some(bars) => bars.event(&event),
            None => line(cx, &event, created)?,
        }
    }
    if let Some(bars) = bars {
        bars.finish();
    }
    let done = get(client, id).await?;
    conclude(cx, &done)?;
    Ok(ExitStatus::of_build(done.build.unwrap_or_default().state()))
}

/// The state of a build when its events end.
pub(crate) async fn until_done(
    client: &Client,
    id: &str,
    mut seen: impl FnMut(&Event),
) -> Result<()> {
    let mut events = client.watch(id, 0);
    while let Some(event) = events.try_next().await? {
        seen(&event);
        if is_end(&event) {
            return Ok(());
        }
    }
    Ok(())
}

pub(crate) async fn get(client: &Client, id: &str) -> Result<GetBuildResponse> {
    Ok(client.get_build(GetBuildRequest { build: id.to_owned() }).await?)
}

/// One sentence at the end, and a line for each job that did not succeed.
pub(crate) fn conclude(cx: &Cx<'_>, answer: &GetBuildResponse) -> Result<()> {
    let build =
        answer.build.clone().ok_or_else(|| Failure::internal("the server sent no build"))?;
    if cx.printer.is_json() {
        return Ok(());
    }
    for job in &answer.jobs {
        if matches!(job.state(), JobState::Failed | JobState::Cancelled) {
            let state =
                cx.printer.err_paint(words::job_style(job.state()), &words::job_state(job.state()));
            let why = words::outcome(job.outcome.as_ref());
            let gap = if why.is_empty() { "" } else { ": " };
            cx.printer.note(format!("job {} {state}{gap}{why}", job.name));
        }
    }
    let state = words::build_state(build.state());
    let state = cx.printer.err_paint(words::build_style(build.state()), &state);
    let took = time::took(build.created_ms, build.finished_ms);
    cx.printer.note(format!("build {} {state} in {took}", build.id));
    let failed = answer.jobs.iter().find(|job| job.state() == JobState::Failed);
    if let Some(job) = failed.filter(|_| build.state() == BuildState::Failed) {
        let hint = cx.printer.err_paint(crate::printer::Style::Cyan, "hint");
        cx.printer.note(format!("{hint}: `kiln explain {}` says why", job.id));
    }
    Ok(())
}

fn is_end(event: &Event) -> bool {
    matches!(&event.change, Some(Change::BuildChanged(change)) if words::is_done(change.state()))
}

fn line(cx: &Cx<'_>, event: &Event, created: i64) -> Result<()> {
    if cx.printer.is_json() {
        return Ok(cx.printer.json_line(&json::event(event))?);
    }
    let text = match &event.change {
        Some(Change::Submitted(change)) => format!("build submitted, {} jobs", change.jobs),
        Some(Change::BuildChanged(change)) => {
            format!("build {}", words::build_state(change.state()))
        }
        Some(Change::Job(change)) => format!("job {} {}", change.name, told(change)),
        None => return Ok(()),
    };
    let since = format!("+{}", time::span(event.time_ms - created));
    Ok(cx.printer.line(format!("{since:>8}  {text}"))?)
}

/// "running on rack-3", "failed: exit code 2".
fn told(change: &JobChanged) -> String {
    let state = words::job_state(change.state());
    let cancelling = if change.cancelling { ", cancelling" } else { "" };
    let taken = matches!(change.state(), JobState::Leased | JobState::Running);
    let agent = match change.agent.as_str() {
        agent if taken && !agent.is_empty() => format!(" on {agent}"),
        _ => String::new(),
    };
    let attempt = match change.attempt {
        attempt if attempt > 1 => format!(", attempt {attempt}"),
        _ => String::new(),
    };
    let mut told = vec![format!("{state}{cancelling}{agent}{attempt}")];
    for part in [words::outcome(change.outcome.as_ref()), change.reason.clone()] {
        if !part.is_empty() && !told.iter().any(|said| said.contains(&part)) {
            told.push(part);
        }
    }
    told.join(": ")
}
