//! LogService: ranges, following, and what agents push.

mod push;
#[cfg(test)]
mod tests;

use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use kiln_core::id::{JobId, LeaseId};
use kiln_proto::{convert, v1};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use super::{auth, refuse, status};
use crate::{
    app::{self, Principal},
    logs::{Error, Follower, Info, Logs, MAIN, MAX_READ, Piece, Stage},
    metrics::Metrics,
};

/// See [`v1::log_service_server::LogService`].
#[derive(Debug, Clone)]
pub struct LogApi {
    logs: Logs,
    metrics: Metrics,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl LogApi {
    /// Uploads run as `tasks`; all streams end with `stop`.
    pub fn new(logs: Logs, metrics: Metrics, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { logs, metrics, tasks, stop }
    }

    /// The job, where the caller may see it.
    async fn job(&self, caller: &Principal, text: &str) -> Result<JobId, Status> {
        let id: JobId = convert::id("job", text).map_err(refuse)?;
        let job = self.logs.job(id).await.map_err(failed)?;
        auth::within(caller, &job)?;
        Ok(id)
    }
}

/// An error of the logs or blobs, as a status.
pub(super) fn failed(error: Error) -> Status {
    app::Error::from(error).into()
}

fn stream_name(name: &str) -> &str {
    if name.is_empty() { MAIN } else { name }
}

fn wide(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn stage(stage: Stage) -> v1::Stage {
    v1::Stage { name: stage.name, time_ms: stage.time, offset: wide(stage.offset) }
}

fn info(info: Info) -> v1::LogInfo {
    v1::LogInfo {
        lease: info.key.lease.to_string(),
        stream: info.key.stream,
        size: wide(info.size),
        complete: info.complete,
        truncated: info.truncated,
        stages: info.stages.into_iter().map(stage).collect(),
        streams: info.streams,
    }
}

fn piece(piece: Piece) -> v1::FollowLogResponse {
    v1::FollowLogResponse {
        data: piece.data,
        offset: wide(piece.offset),
        lease: piece.lease.map(|lease| lease.to_string()).unwrap_or_default(),
        stage: piece.stage.map(stage),
        complete: piece.complete,
        truncated: piece.truncated,
    }
}

#[tonic::async_trait]
impl v1::log_service_server::LogService for LogApi {
    async fn read_log(
        &self,
        request: Request<v1::ReadLogRequest>,
    ) -> Result<Response<v1::ReadLogResponse>, Status> {
        let caller = auth::principal(&request)?;
        let request = request.into_inner();
        let job = self.job(&caller, &request.job).await?;
        let lease: Option<LeaseId> =
            convert::optional_id("lease", &request.lease).map_err(refuse)?;
        let offset = convert::unsigned("offset", request.offset).map_err(refuse)?;
        let limit = convert::unsigned("limit", request.limit).map_err(refuse)?;
        let limit = usize::try_from(limit).unwrap_or(MAX_READ).min(MAX_READ);
        let limit = if limit == 0 { MAX_READ } else { limit };
        let Some(lease) = self.logs.lease_of(job, lease).await.map_err(failed)? else {
            let answer = v1::ReadLogResponse { offset: request.offset, ..Default::default() };
            return Ok(Response::new(answer));
        };
        let stream = stream_name(&request.stream);
        let known = self.logs.info(&lease, stream).await.map_err(failed)?;
        let data = self.logs.read(&known, offset, limit).await.map_err(failed)?;
        self.metrics.log_served(data.len());
        let log = Some(info(known));
        Ok(Response::new(v1::ReadLogResponse { data, offset: request.offset, log }))
    }

    type FollowLogStream = BoxStream<'static, Result<v1::FollowLogResponse, Status>>;

    async fn follow_log(
        &self,
        request: Request<v1::FollowLogRequest>,
    ) -> Result<Response<Self::FollowLogStream>, Status> {
        let caller = auth::principal(&request)?;
        let request = request.into_inner();
        let job = self.job(&caller, &request.job).await?;
        let lease = convert::optional_id("lease", &request.lease).map_err(refuse)?;
        let offset = convert::unsigned("offset", request.offset).map_err(refuse)?;
        let stream = stream_name(&request.stream);
        let follower =
            Follower::new(&self.logs, job, lease, stream, offset).await.map_err(failed)?;
        let metrics = self.metrics.clone();
        let pieces = stream::try_unfold((follower, self.stop.clone()), async |(mut at, stop)| {
            let next = tokio::select! {
                () = stop.cancelled() => return Err(status::going_away()),
                next = at.next() => next.map_err(failed)?,
            };
            Ok(next.map(|next| (piece(next), (at, stop))))
        });
        let pieces = pieces.inspect_ok(move |piece| metrics.log_served(piece.data.len()));
        Ok(Response::new(pieces.boxed()))
    }

    type PushLogStream = BoxStream<'static, Result<v1::PushLogResponse, Status>>;

    async fn push_log(
        &self,
        request: Request<Streaming<v1::PushLogRequest>>,
    ) -> Result<Response<Self::PushLogStream>, Status> {
        let Principal::Agent { id, .. } = auth::principal(&request)? else {
            let hint = "present the credential of an enrolled agent";
            return Err(status::denied("only agents push logs", hint));
        };
        let frames = request.into_inner();
        Ok(Response::new(push::start(self, id, frames)))
    }
}
