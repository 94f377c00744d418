//! How people name builds and jobs: a whole id, the beginning of one, "last", or BUILD/NAME.

use kiln_sdk::{
    Client,
    v1::{ExplainJobRequest, GetBuildRequest, GetBuildResponse, Job, ListBuildsRequest},
};

use crate::{cmd::Result, failure::Failure};

/// Pages looked through for the beginning of an id.
const PAGES: usize = 4;

/// A whole id takes no call.
pub(crate) async fn build_id(client: &Client, name: &str) -> Result<String> {
    if is_id(name, "bld_") {
        return Ok(name.to_owned());
    }
    if name == "last" {
        let request = ListBuildsRequest { page_size: 1, ..Default::default() };
        let found = client.list_builds(request).await?.builds.into_iter().next();
        return found.map(|build| build.id).ok_or_else(|| Failure::usage("there is no build yet"));
    }
    let hex = name.strip_prefix("bld_").unwrap_or(name);
    if hex.len() < 4 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Failure::usage(format!("{name:?} names no build"))
            .hint("give an id as `kiln list` shows it, its beginning, or \"last\""));
    }
    by_prefix(client, &format!("bld_{hex}")).await
}

async fn by_prefix(client: &Client, prefix: &str) -> Result<String> {
    let mut request = ListBuildsRequest { page_size: 500, ..Default::default() };
    let mut found: Vec<String> = vec![];
    for _ in 0..PAGES {
        let page = client.list_builds(request.clone()).await?;
        found.extend(page.builds.into_iter().map(|b| b.id).filter(|id| id.starts_with(prefix)));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    match found.as_slice() {
        [id] => Ok(id.clone()),
        [] => Err(Failure::usage(format!("no build's id begins with {prefix}"))
            .hint("`kiln list` shows the ids")),
        several => {
            Err(Failure::usage(format!("{} builds' ids begin with {prefix}", several.len()))
                .hint("give more of the id"))
        }
    }
}

/// A build with its jobs.
pub(crate) async fn build(client: &Client, name: &str) -> Result<GetBuildResponse> {
    let build = build_id(client, name).await?;
    Ok(client.get_build(GetBuildRequest { build }).await?)
}

/// One job: by id, or as BUILD/NAME.
pub(crate) async fn job(client: &Client, name: &str) -> Result<Job> {
    match jobs(client, name).await?.as_slice() {
        [job] => Ok(job.clone()),
        jobs => Err(several(name, jobs)),
    }
}

/// One job, or all jobs of a build.
pub(crate) async fn jobs(client: &Client, name: &str) -> Result<Vec<Job>> {
    if name.starts_with("job_") {
        let answer = client.explain_job(ExplainJobRequest { job: name.to_owned() }).await?;
        return Ok(answer.job.into_iter().collect());
    }
    let (outer, inner) = name.split_once('/').map_or((name, None), |(b, j)| (b, Some(j)));
    let jobs = build(client, outer).await?.jobs;
    match inner {
        None => Ok(jobs),
        Some(wanted) => Ok(vec![named(&jobs, wanted)?.clone()]),
    }
}

/// A job of a build by its name or id.
pub(crate) fn named<'a>(jobs: &'a [Job], name: &str) -> Result<&'a Job> {
    let found = jobs.iter().find(|job| job.name == name || job.id == name);
    found.ok_or_else(|| {
        Failure::usage(format!("the build has no job {name:?}"))
            .hint(format!("it has {}", list(jobs)))
    })
}

fn several(name: &str, jobs: &[Job]) -> Failure {
    Failure::usage(format!("{name} has {} jobs", jobs.len()))
        .hint(format!("name one as {name}/JOB: {}", list(jobs)))
}

fn list(jobs: &[Job]) -> String {
    const SHOWN: usize = 8;
    let mut names: Vec<&str> = jobs.iter().take(SHOWN).map(|job| job.name.as_str()).collect();
    if jobs.len() > SHOWN {
        names.push("…");
    }
    names.join(", ")
}

fn is_id(text: &str, prefix: &str) -> bool {
    let hex = text.strip_prefix(prefix);
    hex.is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
