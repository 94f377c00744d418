//! `kiln list`: builds, newest first.

use kiln_sdk::v1::{Build, BuildOrder, BuildState, JobState, ListBuildsRequest};
use serde_json::{Value, json};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    json,
    table::Table,
    time, units, words,
};

/// The server's limit of a page.
const PAGE: usize = 500;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only of this project
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Only in this state; repeat for more
    #[arg(long, value_parser = words::parse_build_state, value_name = "STATE")]
    state: Vec<BuildState>,
    /// Only those submitted within this time, as 24h
    #[arg(long, value_parser = units::duration, value_name = "TIME")]
    since: Option<i64>,
    /// Only those whose title contains this
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// Oldest first
    #[arg(long)]
    oldest: bool,
    /// How many at most
    #[arg(long, default_value_t = 20, value_name = "N", conflicts_with = "all", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// As many as there are
    #[arg(long)]
    all: bool,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let limit = if self.all { usize::MAX } else { self.limit as usize };
        let order = if self.oldest { BuildOrder::Oldest } else { BuildOrder::Newest };
        let mut request = ListBuildsRequest {
            project: self.project.unwrap_or_default(),
            states: self.state.into_iter().map(i32::from).collect(),
            created_from_ms: self.since.map_or(0, |since| time::now() - since),
            title_contains: self.title.unwrap_or_default(),
            order: order.into(),
            ..Default::default()
        };
        let mut builds: Vec<Build> = vec![];
        let mut more = true;
        while more && builds.len() < limit {
            let wanted = (limit - builds.len()).min(PAGE);
            request.page_size = i32::try_from(wanted).unwrap_or(i32::MAX);
            let page = client.list_builds(request.clone()).await?;
            builds.extend(page.builds);
            more = !page.next_page_token.is_empty();
            request.page_token = page.next_page_token;
        }
        show(cx, &builds, more)?;
        Ok(ExitStatus::Succeeded)
    }
}

fn show(cx: &Cx<'_>, builds: &[Build], more: bool) -> Result<()> {
    if cx.printer.is_json() {
        let builds: Value = builds.iter().map(json::build).collect();
        return Ok(cx.printer.json(&json!({ "builds": builds, "more": more }))?);
    }
    let mut table =
        Table::new(&["BUILD", "PROJECT", "STATE", "JOBS", "SUBMITTED", "TOOK", "TITLE"]);
    for build in builds {
        table.row([
            build.id.as_str().into(),
            build.project.as_str().into(),
            words::build_cell(build.state()),
            progress(build).into(),
            time::ago(build.created_ms).into(),
            time::took(build.created_ms, build.finished_ms).into(),
            build.title.as_str().into(),
        ]);
    }
    if table.is_empty() {
        cx.printer.note("no builds");
        return Ok(());
    }
    cx.printer.table(&table)?;
    if more {
        cx.printer.note("there are more: use --limit or --all");
    }
    Ok(())
}

/// "3/10": jobs that are done, of all.
fn progress(build: &Build) -> String {
    let done = [JobState::Succeeded, JobState::Failed, JobState::Cancelled];
    let count = |state: &JobState| build.counts.get(&i32::from(*state)).copied().unwrap_or(0);
    let all: i32 = build.counts.values().sum();
    format!("{}/{all}", done.iter().map(count).sum::<i32>())
}
