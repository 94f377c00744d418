//! Builds and logs of the fake: one build of seven events, one log.

use std::pin::Pin;

use futures::{Stream, stream};
use kiln_sdk::v1::{build_service_server::BuildService, log_service_server::LogService, *};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

use super::{LOG, State};

const EVENTS: i64 = 7;
const CUTS: usize = 4;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn event(number: i64) -> WatchBuildResponse {
    let state = if number == EVENTS { BuildState::Succeeded } else { BuildState::Running };
    let change = event::Change::BuildChanged(BuildChanged { state: state.into() });
    let event = Event { build: "bld".into(), number, time_ms: 0, change: Some(change) };
    WatchBuildResponse { event: Some(event) }
}

#[tonic::async_trait]
impl BuildService for State {
    type WatchBuildStream = Answers<WatchBuildResponse>;

    async fn submit_build(
        &self,
        request: Request<SubmitBuildRequest>,
    ) -> Result<Response<SubmitBuildResponse>, Status> {
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer secret");
        let mut seen = self.seen.lock().unwrap();
        seen.keys.push(request.into_inner().key);
        if seen.keys.len() <= self.script.refuse_submits {
            let mut details = ErrorDetails::new();
            details.set_retry_info(Some(self.script.pause));
            return Err(Status::with_error_details(Code::ResourceExhausted, "busy", details));
        }
        Ok(Response::new(SubmitBuildResponse { build: None, created: true }))
    }

    async fn watch_build(
        &self,
        request: Request<WatchBuildRequest>,
    ) -> Result<Response<Self::WatchBuildStream>, Status> {
        let WatchBuildRequest { build, after } = request.into_inner();
        self.seen.lock().unwrap().watched.push(after);
        if build != "bld" {
            return Err(Status::not_found("no such build"));
        }
        let cut = if self.script.cut_events == 0 { EVENTS } else { after + self.script.cut_events };
        let last = cut.min(EVENTS);
        let mut answers: Vec<_> = (after + 1..=last).map(|number| Ok(event(number))).collect();
        if last < EVENTS {
            answers.push(Err(Status::unavailable("cut")));
        }
        Ok(Response::new(Box::pin(stream::iter(answers))))
    }

    async fn get_build(
        &self,
        _: Request<GetBuildRequest>,
    ) -> Result<Response<GetBuildResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_builds(
        &self,
        _: Request<ListBuildsRequest>,
    ) -> Result<Response<ListBuildsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_build(
        &self,
        _: Request<CancelBuildRequest>,
    ) -> Result<Response<CancelBuildResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn retry_build(
        &self,
        _: Request<RetryBuildRequest>,
    ) -> Result<Response<RetryBuildResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn explain_job(
        &self,
        _: Request<ExplainJobRequest>,
    ) -> Result<Response<ExplainJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl LogService for State {
    type FollowLogStream = Answers<FollowLogResponse>;
    type PushLogStream = Answers<PushLogResponse>;

    async fn follow_log(
        &self,
        request: Request<FollowLogRequest>,
    ) -> Result<Response<Self::FollowLogStream>, Status> {
        let FollowLogRequest { lease, offset, .. } = request.into_inner();
        let mut seen = self.seen.lock().unwrap();
        seen.followed.push((lease, offset));
        let begin = usize::try_from(offset).unwrap();
        // A cut that comes for ever lets nobody through.
        let cut = if seen.followed.len() > CUTS { 0 } else { self.script.cut_log };
        let end = if cut == 0 { LOG.len() } else { LOG.len().min(begin + cut) };
        let piece = FollowLogResponse {
            data: LOG.as_bytes()[begin..end].to_vec().into(),
            offset,
            lease: "lse".into(),
            complete: end == LOG.len(),
            ..Default::default()
        };
        let mut answers = vec![Ok(piece)];
        if end < LOG.len() {
            answers.push(Err(Status::unavailable("cut")));
        }
        Ok(Response::new(Box::pin(stream::iter(answers))))
    }

    async fn read_log(
        &self,
        _: Request<ReadLogRequest>,
    ) -> Result<Response<ReadLogResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn push_log(
        &self,
        _: Request<Streaming<PushLogRequest>>,
    ) -> Result<Response<Self::PushLogStream>, Status> {
        Err(Status::unimplemented(""))
    }
}
