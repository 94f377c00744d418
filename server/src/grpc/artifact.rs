//! ArtifactService: uploads and downloads of blobs, and the list of artifacts.

use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use kiln_core::id::{BuildId, JobId, LeaseId};
use kiln_core::spec::Violation;
use kiln_proto::{convert, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use super::{auth, log::failed, refuse, status};
use crate::{
    app::{Principal, Role},
    artifacts::{Artifacts, BlobRow, Upload, Uploader},
    metrics::Metrics,
    uploads::Error,
};
use v1::put_artifact_request::Frame;

/// Bytes of one answer.
const PIECE: usize = 256 << 10;
/// Bytes that are fetched from the store at once.
const FETCH: u64 = 2 << 20;
const MAX_DATA: usize = 1 << 20;

/// See [`v1::artifact_service_server::ArtifactService`].
#[derive(Debug, Clone)]
pub struct ArtifactApi {
    artifacts: Artifacts,
    metrics: Metrics,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl ArtifactApi {
    /// Uploads run as `tasks`; all streams end with `stop`.
    pub fn new(
        artifacts: Artifacts,
        metrics: Metrics,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { artifacts, metrics, tasks, stop }
    }

    /// The blob that is asked for, where the caller may see it.
    async fn find(
        &self,
        caller: &Principal,
        what: Option<v1::get_artifact_request::What>,
    ) -> Result<BlobRow, Status> {
        use v1::get_artifact_request::What;
        match what {
            None => Err(wrong("what", "must be a digest or an artifact")),
            Some(What::Sha256(sha256)) => self.by_digest(caller, &sha256).await,
            Some(What::Artifact(artifact)) => self.by_name(caller, &artifact).await,
        }
    }

    /// A digest says nothing of a project: only who may see all of them asks by it, or an agent whose leases need it.
    async fn by_digest(&self, caller: &Principal, sha256: &str) -> Result<BlobRow, Status> {
        let found = match caller {
            Principal::Agent { id, .. } => self.artifacts.needed(*id, sha256).await,
            Principal::Token { role: Role::Admin, project: None, .. } => {
                self.artifacts.blob(sha256).await
            }
            Principal::Token { .. } => {
                return Err(status::denied(
                    "only agents and administrators fetch by digest",
                    "name the job and the artifact instead",
                ));
            }
        };
        found.map_err(failed)
    }

    async fn by_name(
        &self,
        caller: &Principal,
        artifact: &v1::ArtifactRef,
    ) -> Result<BlobRow, Status> {
        if matches!(caller, Principal::Agent { .. }) {
            let hint = "ask for the digest that the assignment names";
            return Err(status::denied("agents fetch by digest only", hint));
        }
        let id: JobId = convert::id("artifact.job", &artifact.job).map_err(refuse)?;
        auth::within(caller, &self.artifacts.job(id).await.map_err(failed)?)?;
        let row = self.artifacts.artifact(id, &artifact.name).await.map_err(failed)?;
        self.artifacts.blob(&row.artifact.sha256).await.map_err(failed)
    }
}

fn wrong(field: &str, message: &str) -> Status {
    refuse(Violation::new(field, message))
}

fn wide(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[tonic::async_trait]
impl v1::artifact_service_server::ArtifactService for ArtifactApi {
    type PutArtifactStream = BoxStream<'static, Result<v1::PutArtifactResponse, Status>>;

    async fn put_artifact(
        &self,
        request: Request<Streaming<v1::PutArtifactRequest>>,
    ) -> Result<Response<Self::PutArtifactStream>, Status> {
        let caller = auth::principal(&request)?;
        let frames = request.into_inner();
        let (answers, answered) = mpsc::channel(4);
        let upload = self.clone();
        self.tasks.spawn(async move {
            if let Err(status) = put(&upload, &caller, frames, &answers).await {
                // Who has gone needs no answer.
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(answered).boxed()))
    }

    type GetArtifactStream = BoxStream<'static, Result<v1::GetArtifactResponse, Status>>;

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<Self::GetArtifactStream>, Status> {
        let caller = auth::principal(&request)?;
        let v1::GetArtifactRequest { what, offset } = request.into_inner();
        let offset = convert::unsigned("offset", offset).map_err(refuse)?;
        let blob = self.find(&caller, what).await?;
        if offset > blob.size {
            return Err(wrong("offset", "is behind the end of the blob"));
        }
        let first = v1::GetArtifactResponse {
            data: Bytes::new(),
            size: wide(blob.size),
            sha256: blob.digest.to_string(),
        };
        let state = (self.clone(), blob, offset);
        let rest = stream::try_unfold(state, async |(api, blob, offset)| {
            let Self { artifacts, metrics, stop, .. } = &api;
            if stop.is_cancelled() {
                return Err(status::going_away());
            }
            let bytes = artifacts.read(&blob, offset, FETCH).await.map_err(failed)?;
            metrics.downloaded(bytes.len());
            let next = offset + bytes.len() as u64;
            Ok((!bytes.is_empty()).then_some((bytes, (api, blob, next))))
        });
        let rest = rest.flat_map(|bytes| stream::iter(pieces(bytes)));
        Ok(Response::new(stream::iter([Ok(first)]).chain(rest).boxed()))
    }

    async fn list_artifacts(
        &self,
        request: Request<v1::ListArtifactsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        let caller = auth::principal(&request)?;
        let v1::ListArtifactsRequest { build, job } = request.into_inner();
        let build: BuildId = convert::id("build", &build).map_err(refuse)?;
        let job: Option<JobId> = convert::optional_id("job", &job).map_err(refuse)?;
        auth::within(&caller, &self.artifacts.build(build).await.map_err(failed)?)?;
        let jobs = self.artifacts.list(build, job).await.map_err(failed)?;
        let mut artifacts = Vec::new();
        for (job, rows) in jobs {
            artifacts.extend(rows.into_iter().map(|row| v1::JobArtifact {
                job: job.job.id.to_string(),
                job_name: job.name.clone(),
                artifact: Some(row.artifact.into()),
            }));
        }
        Ok(Response::new(v1::ListArtifactsResponse { artifacts }))
    }
}

/// Cuts what was fetched into answers.
fn pieces(bytes: Result<Bytes, Status>) -> Vec<Result<v1::GetArtifactResponse, Status>> {
    let mut bytes = match bytes {
        Ok(bytes) => bytes,
        Err(status) => return vec![Err(status)],
    };
    let mut pieces = Vec::with_capacity(bytes.len() / PIECE + 1);
    while !bytes.is_empty() {
        let data = bytes.split_to(PIECE.min(bytes.len()));
        pieces.push(Ok(v1::GetArtifactResponse { data, ..Default::default() }));
    }
    pieces
}

async fn put(
    ArtifactApi { artifacts, metrics, stop, .. }: &ArtifactApi,
    caller: &Principal,
    mut frames: Streaming<v1::PutArtifactRequest>,
    answers: &mpsc::Sender<Result<v1::PutArtifactResponse, Status>>,
) -> Result<(), Status> {
    let Some(first) = frames.message().await? else { return Ok(()) };
    let Some(Frame::Open(open)) = first.frame else {
        return Err(wrong("open", "must be the first frame"));
    };
    let size = convert::unsigned("open.size", open.size).map_err(refuse)?;
    let uploader = uploader(caller, &open.lease)?;
    let mut upload = artifacts.upload(uploader, &open.sha256, size).await.map_err(failed)?;
    let _ = answers.send(Ok(answer(&upload))).await;
    while !upload.is_stored() {
        if upload.is_replaced() {
            return Err(failed(Error::Replaced));
        }
        let frame = tokio::select! {
            () = stop.cancelled() => return Err(status::going_away()),
            () = upload.replaced() => return Err(failed(Error::Replaced)),
            frame = frames.message() => frame,
        };
        // The part stays for the next attempt.
        let Ok(Some(frame)) = frame else { return Ok(()) };
        let Some(Frame::Data(data)) = frame.frame else {
            return Err(wrong("data", "must be the frames behind the first"));
        };
        if data.len() > MAX_DATA {
            return Err(wrong("data", "has more than 1 MiB; send smaller pieces"));
        }
        let bytes = data.len();
        upload.append(data).await.map_err(failed)?;
        metrics.uploaded(bytes, upload.is_stored());
        if upload.is_stored() {
            let _ = answers.send(Ok(answer(&upload))).await;
        }
    }
    Ok(())
}

fn uploader(caller: &Principal, lease: &str) -> Result<Uploader, Status> {
    let lease: Option<LeaseId> = convert::optional_id("open.lease", lease).map_err(refuse)?;
    match (caller, lease) {
        (Principal::Agent { id, .. }, Some(lease)) => Ok(Uploader::Agent { agent: *id, lease }),
        (Principal::Agent { .. }, None) => Err(wrong("open.lease", "must name one of your leases")),
        (Principal::Token { id, .. }, None) => Ok(Uploader::Submitter(id.to_string())),
        (Principal::Token { .. }, Some(_)) => {
            Err(wrong("open.lease", "must be empty: leases are the agents'"))
        }
    }
}

fn answer(upload: &Upload) -> v1::PutArtifactResponse {
    v1::PutArtifactResponse { held: wide(upload.held()), stored: upload.is_stored() }
}
