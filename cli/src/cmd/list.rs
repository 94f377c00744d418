//! `kiln list`: builds, newest first.

use kiln_sdk::v1::{Build, BuildOrder, BuildState, JobState, ListBuildsRequest};

use crate::{
    cmd::{Cx, Result, pages::Extent},
    exit::ExitStatus,
    json,
    table::Table,
    time, units, words,
};

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
    #[command(flatten)]
    extent: Extent,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let order = if self.oldest { BuildOrder::Oldest } else { BuildOrder::Newest };
        let mut request = ListBuildsRequest {
            project: self.project.unwrap_or_default(),
            states: self.state.into_iter().map(i32::from).collect(),
            created_from_ms: self.since.map_or(0, |since| time::now() - since),
            title_contains: self.title.unwrap_or_default(),
            order: order.into(),
            ..Default::default()
        };
        let listed = self
            .extent
            .read(async |wanted| {
                request.page_size = wanted;
                let page = client.list_builds(request.clone()).await?;
                let more = !page.next_page_token.is_empty();
                request.page_token = page.next_page_token;
                Ok((page.builds, more))
            })
            .await?;
        listed.show(cx, "builds", json::build, &table(&listed.rows), "no builds")?;
        Ok(ExitStatus::Succeeded)
    }
}

fn table(builds: &[Build]) -> Table {
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
    table
}

/// "3/10": jobs that are done, of all.
fn progress(build: &Build) -> String {
    let done = [JobState::Succeeded, JobState::Failed, JobState::Cancelled];
    let count = |state: &JobState| build.counts.get(&i32::from(*state)).copied().unwrap_or(0);
    let all: i32 = build.counts.values().sum();
    format!("{}/{all}", done.iter().map(count).sum::<i32>())
}
