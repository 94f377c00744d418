//! BuildService.

use std::{collections::BTreeSet, sync::Arc};

use futures::{StreamExt, stream::BoxStream};
use kiln_core::{
    id::{BuildId, JobId},
    job::Status as JobStatus,
    spec::{BuildSpec, Source, Violation},
};
use kiln_proto::{convert, v1};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{auth, page, refuse, status, view, watch::Watch};
use crate::{
    app::{App, Explanation, Principal, Submit, views::BuildFilter},
    files::{Files, Lines},
};

/// Bytes of the reason of a cancel.
const MAX_REASON: usize = 1_000;
const MAX_TITLE_FILTER: usize = 200;
/// Jobs that one retry may name.
const MAX_TARGETS: usize = 10_000;

/// See [`v1::build_service_server::BuildService`].
#[derive(Debug, Clone)]
pub struct Builds {
    app: App,
    files: Arc<dyn Files>,
    stop: CancellationToken,
}

impl Builds {
    pub fn new(app: App, files: Arc<dyn Files>, stop: CancellationToken) -> Self {
        Self { app, files, stop }
    }

    /// Whether the caller may touch this build.
    async fn guard(&self, caller: &Principal, build: BuildId) -> Result<(), Status> {
        if auth::bound(caller).is_some() {
            auth::within(caller, &self.app.build(build).await?.build)?;
        }
        Ok(())
    }

    /// The project of a submission: the one that is named, else the caller's own, else the default.
    async fn project(&self, caller: &Principal, name: String) -> Result<String, Status> {
        let Some(own) = auth::bound(caller) else {
            return Ok(if name.is_empty() { "default".to_owned() } else { name });
        };
        if name.is_empty() {
            let projects = self.app.projects().await?;
            let found = projects.into_iter().find(|project| project.id == own);
            return found.map(|project| project.name).ok_or_else(|| {
                status::denied("the token's project is gone", "ask an administrator for a token")
            });
        }
        auth::within(caller, &self.app.project(&name).await?)?;
        Ok(name)
    }

    async fn hold_sources(&self, spec: &BuildSpec) -> Result<(), Status> {
        let mut held = BTreeSet::new();
        let jobs = spec.jobs.iter().enumerate().filter_map(|(index, job)| {
            Some((format!("spec.jobs[{index}].source"), job.source.as_ref()?))
        });
        let build = spec.source.as_ref().map(|source| ("spec.source".to_owned(), source));
        for (field, source) in build.into_iter().chain(jobs) {
            if let Source::Archive { sha256, size } = source
                && held.insert((sha256, size))
            {
                self.files.hold(&format!("{field}.archive.sha256"), sha256, *size).await?;
            }
        }
        Ok(())
    }

    /// The lines that matter, of a job that failed. Without them the explanation is still worth something.
    async fn lines(&self, explanation: &Explanation) -> Lines {
        let job = &explanation.job.job.job;
        let Some(lease) = job.lease.filter(|_| job.status() == JobStatus::Failed) else {
            return Lines::default();
        };
        self.files.lines(lease).await.unwrap_or_else(|error| {
            tracing::warn!(%lease, %error, "no lines of a log for an explanation");
            Lines::default()
        })
    }
}

#[tonic::async_trait]
impl v1::build_service_server::BuildService for Builds {
    type WatchBuildStream = BoxStream<'static, Result<v1::WatchBuildResponse, Status>>;

    async fn submit_build(
        &self,
        request: Request<v1::SubmitBuildRequest>,
    ) -> Result<Response<v1::SubmitBuildResponse>, Status> {
        let caller = auth::caller(&request)?;
        let app = self.app.by(&caller);
        let caller = caller.principal;
        let trace = request.metadata().get("traceparent").and_then(|text| text.to_str().ok());
        let trace = trace.and_then(|text| text.parse().ok());
        let request = request.into_inner();
        let spec =
            request.spec.ok_or_else(|| refuse(Violation::new("spec", "say what to build")))?;
        let spec = convert::build_spec("spec", spec).map_err(|found| status::invalid(&found))?;
        let submit = Submit {
            project: self.project(&caller, request.project).await?,
            key: Some(request.key).filter(|key| !key.is_empty()),
            spec,
            secrets: convert::secrets(request.secrets),
            submitter: match caller {
                Principal::Token { name, .. } | Principal::Agent { name, .. } => name,
            },
            trace,
        };
        if request.validate_only {
            self.app.check(submit).await?;
            return Ok(Response::new(v1::SubmitBuildResponse::default()));
        }
        self.hold_sources(&submit.spec).await?;
        let (build, created) = app.submit(submit).await?;
        let build = Some(view::build(build));
        Ok(Response::new(v1::SubmitBuildResponse { build, created }))
    }

    async fn get_build(
        &self,
        request: Request<v1::GetBuildRequest>,
    ) -> Result<Response<v1::GetBuildResponse>, Status> {
        let caller = auth::principal(&request)?;
        let id = convert::id("build", &request.get_ref().build).map_err(refuse)?;
        let (build, jobs) = self.app.build_with_jobs(id).await?;
        auth::within(&caller, &build.build)?;
        let jobs = jobs.into_iter().map(view::job).collect();
        Ok(Response::new(v1::GetBuildResponse { build: Some(view::build(build)), jobs }))
    }

    async fn list_builds(
        &self,
        request: Request<v1::ListBuildsRequest>,
    ) -> Result<Response<v1::ListBuildsResponse>, Status> {
        let caller = auth::principal(&request)?;
        let request = request.into_inner();
        let limit = page::size("page_size", request.page_size).map_err(refuse)?;
        let mut filter = filter(&request)?;
        if let Some(own) = auth::bound(&caller) {
            if !request.project.is_empty() {
                auth::within(&caller, &self.app.project(&request.project).await?)?;
            }
            filter.project = Some(own);
        }
        let list = list_id(&request, &filter);
        let after = page::read("page_token", list, &request.page_token).map_err(refuse)?;
        let project = Some(request.project.as_str()).filter(|name| !name.is_empty());
        let (builds, next) = self.app.builds(project, filter, after, limit).await?;
        Ok(Response::new(v1::ListBuildsResponse {
            builds: builds.into_iter().map(view::build).collect(),
            next_page_token: next.map(|next| page::write(list, next)).unwrap_or_default(),
        }))
    }

    async fn watch_build(
        &self,
        request: Request<v1::WatchBuildRequest>,
    ) -> Result<Response<Self::WatchBuildStream>, Status> {
        let caller = auth::principal(&request)?;
        let request = request.into_inner();
        let id = convert::id("build", &request.build).map_err(refuse)?;
        convert::unsigned("after", request.after).map_err(refuse)?;
        auth::within(&caller, &self.app.build(id).await?.build)?;
        let watch = Watch::new(self.app.clone(), id, request.after, self.stop.clone());
        Ok(Response::new(watch.stream().boxed()))
    }

    async fn cancel_build(
        &self,
        request: Request<v1::CancelBuildRequest>,
    ) -> Result<Response<v1::CancelBuildResponse>, Status> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let build = convert::id("build", &request.build).map_err(refuse)?;
        let job = convert::optional_id("job", &request.job).map_err(refuse)?;
        if request.reason.len() > MAX_REASON {
            return Err(refuse(Violation::new("reason", format!("at most {MAX_REASON} bytes"))));
        }
        self.guard(&caller.principal, build).await?;
        let build = self.app.by(&caller).cancel(build, job, &request.reason).await?;
        Ok(Response::new(v1::CancelBuildResponse { build: Some(view::build(build)) }))
    }

    async fn retry_build(
        &self,
        request: Request<v1::RetryBuildRequest>,
    ) -> Result<Response<v1::RetryBuildResponse>, Status> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let build = convert::id("build", &request.build).map_err(refuse)?;
        let targets = targets(&request.targets).map_err(|found| status::invalid(&found))?;
        self.guard(&caller.principal, build).await?;
        let (build, jobs) = self.app.by(&caller).retry(build, targets).await?;
        Ok(Response::new(v1::RetryBuildResponse {
            build: Some(view::build(build)),
            jobs: jobs.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn explain_job(
        &self,
        request: Request<v1::ExplainJobRequest>,
    ) -> Result<Response<v1::ExplainJobResponse>, Status> {
        let caller = auth::principal(&request)?;
        let id = convert::id("job", &request.get_ref().job).map_err(refuse)?;
        let explanation = self.app.explain(id).await?;
        auth::within(&caller, &explanation.job.job)?;
        let lines = self.lines(&explanation).await;
        Ok(Response::new(v1::ExplainJobResponse {
            job: Some(view::job(explanation.job)),
            summary: explanation.summary,
            reasons: explanation.reasons.into_iter().map(view::reason).collect(),
            agents: explanation.agents.into_iter().map(view::verdict).collect(),
            lines: lines.lines,
            lines_offset: i64::try_from(lines.offset).unwrap_or(i64::MAX),
        }))
    }
}

fn filter(request: &v1::ListBuildsRequest) -> Result<BuildFilter, Status> {
    let mut found = vec![];
    let mut states = vec![];
    for (index, &state) in request.states.iter().enumerate().take(100) {
        match convert::build_state(&format!("states[{index}]"), state) {
            Ok(state) => states.push(state),
            Err(wrong) => found.extend(wrong),
        }
    }
    for (field, value) in [
        ("created_from_ms", request.created_from_ms),
        ("created_until_ms", request.created_until_ms),
    ] {
        found.extend(convert::unsigned(field, value).err());
    }
    if request.title_contains.len() > MAX_TITLE_FILTER {
        let message = format!("at most {MAX_TITLE_FILTER} bytes");
        found.push(Violation::new("title_contains", message));
    }
    let order = v1::BuildOrder::try_from(request.order);
    if order.is_err() {
        found.push(Violation::new("order", "is no value of this enum"));
    }
    if !found.is_empty() {
        return Err(status::invalid(&found));
    }
    states.sort_unstable();
    states.dedup();
    let when = |time: i64| Some(time).filter(|time| *time > 0);
    Ok(BuildFilter {
        project: None,
        states,
        created_from: when(request.created_from_ms),
        created_until: when(request.created_until_ms),
        title_contains: request.title_contains.clone(),
        oldest_first: order == Ok(v1::BuildOrder::Oldest),
    })
}

fn list_id(request: &v1::ListBuildsRequest, filter: &BuildFilter) -> [u8; 16] {
    page::list_id(&[&request.project, &format!("{filter:?}")])
}

type Target = (JobId, Option<u32>);

fn targets(targets: &[v1::RetryTarget]) -> Result<Vec<Target>, Vec<Violation>> {
    if targets.len() > MAX_TARGETS {
        return Err(vec![Violation::new("targets", format!("at most {MAX_TARGETS}"))]);
    }
    let mut found = vec![];
    let mut read = vec![];
    for (index, target) in targets.iter().enumerate() {
        let job = convert::id(&format!("targets[{index}].job"), &target.job);
        let round = convert::count(&format!("targets[{index}].round"), target.round);
        match (job, round) {
            (Ok(job), Ok(round)) => read.push((job, Some(round).filter(|round| *round > 0))),
            (job, round) => found.extend(job.err().into_iter().chain(round.err())),
        }
    }
    if found.is_empty() { Ok(read) } else { Err(found) }
}
