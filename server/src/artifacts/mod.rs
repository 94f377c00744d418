//! Blobs by digest, and the artifacts that name them.
//!
//! An upload leaves a stored, verified and pinned blob. Artifacts appear only with the report that names them, in its
//! transaction; from then on they hold the blob, and the pin goes. What nothing holds is collected.

mod access;
mod collect;
pub mod index;
pub mod memory;
mod name;
mod part;
#[cfg(test)]
mod tests;
mod upload;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use kiln_core::{
    Millis,
    id::{AgentId, BuildId, JobId, LeaseId},
    session::Artifact,
    spec::Violation,
};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};

use crate::{
    clock::SharedClock,
    store::{ArtifactRow, JobRow, SharedStore},
    uploads::{Error, Result, Seats, blocking, object_identity},
};

pub use collect::Collected;
pub use index::{BlobIndex, BlobRow, Digest, Holder, Pin};
pub use upload::Upload;

/// How long a source is kept for the submission that will name it.
const SUBMISSION: Duration = Duration::from_hours(1);

/// Who uploads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uploader {
    /// An agent, for one of its leases.
    Agent { agent: AgentId, lease: LeaseId },
    /// Someone who will submit it as a source; a name for his part files, of `[A-Za-z0-9_]`.
    Submitter(String),
}

/// What [`Artifacts`] is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    pub index: Arc<dyn BlobIndex>,
    pub objects: Arc<dyn ObjectStore>,
    /// Where the blobs are among the objects.
    pub root: Path,
    /// Where parts of uploads are.
    pub folder: PathBuf,
    pub rows: SharedStore,
    pub clock: SharedClock,
    /// Bytes of one blob.
    pub max_blob: u64,
}

/// All blobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Artifacts {
    parts: Parts,
    seats: Seats<upload::PartKey>,
}

impl Artifacts {
    /// Refused where the objects are another database's.
    pub async fn open(parts: Parts) -> Result<Self> {
        let recorded = parts.index.identity("blobs", None).await?;
        let fresh = parts.clock.id().simple().to_string();
        let fresh = recorded.is_none().then_some(fresh.as_str());
        let found = object_identity(parts.objects.as_ref(), &parts.root, fresh).await?;
        let recorded = match recorded {
            Some(recorded) => recorded,
            None => parts.index.identity("blobs", Some(&found)).await?.unwrap_or_default(),
        };
        if found != recorded {
            return Err(Error::Foreign { name: "artifact", found, recorded });
        }
        let folder = parts.folder.clone();
        blocking(move || {
            std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder.display(), e))
        })
        .await?;
        Ok(Self { parts, seats: Seats::default() })
    }

    /// Errors where the store of the blobs does not answer, or is another one than at the start.
    pub async fn reach(&self) -> Result<()> {
        let found = object_identity(self.parts.objects.as_ref(), &self.parts.root, None).await?;
        if found.is_empty() {
            let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::io("find", &"the store of artifacts", gone));
        }
        Ok(())
    }

    /// Where the object of this name is.
    fn object(&self, name: &str) -> Path {
        name.split('/').fold(self.parts.root.clone(), Path::join)
    }

    /// Begins or goes on with an upload.
    pub async fn upload(&self, uploader: Uploader, sha256: &str, size: u64) -> Result<Upload> {
        let digest = parse(sha256, "open.sha256")?;
        if size > self.parts.max_blob {
            let message = format!("is above the server's limit of {} bytes", self.parts.max_blob);
            return Err(Error::invalid("open.size", message));
        }
        match uploader {
            Uploader::Agent { agent, lease } => {
                self.check_lease(agent, lease, &digest, size).await?;
                let pin = upload::pin(digest, size, Holder::Lease(lease), None);
                self.begin(pin, agent.to_string()).await
            }
            Uploader::Submitter(name) => {
                let pin = upload::pin(digest, size, Holder::Submission, Some(self.submission()));
                self.begin(pin, name).await
            }
        }
    }

    /// Only an open lease of the agent itself, and only as much as its job may leave.
    async fn check_lease(
        &self,
        agent: AgentId,
        lease: LeaseId,
        digest: &Digest,
        size: u64,
    ) -> Result<()> {
        let row = self.parts.rows.lease(lease).await?.filter(|row| row.agent == agent);
        let row = row.ok_or_else(|| Error::not_found("lease", lease))?;
        if !row.phase.is_open() {
            return Err(Error::Stale { lease });
        }
        let spec = self.parts.rows.spec(row.job).await?;
        let allowed = spec.map_or(u64::MAX, |spec| spec.resources.artifact_bytes);
        let pins = self.parts.index.pins_of(lease).await?;
        let others = pins.iter().filter(|pin| pin.digest != *digest);
        let sum: u64 = others.map(|pin| pin.size).sum();
        if allowed > 0 && sum.saturating_add(size) > allowed {
            let message = format!(
                "the artifacts of this job are above its limit of {allowed} bytes; raise resources.artifacts"
            );
            return Err(Error::invalid("open.size", message));
        }
        Ok(())
    }

    fn submission(&self) -> Millis {
        let hour = Millis::try_from(SUBMISSION.as_millis()).unwrap_or(Millis::MAX);
        self.parts.clock.now().saturating_add(hour)
    }

    /// What is wrong with the artifacts of a report: their names, and whether this lease uploaded each of them. To be
    /// asked before the report is taken.
    pub async fn check_report(
        &self,
        lease: LeaseId,
        artifacts: &[Artifact],
    ) -> Result<Vec<Violation>> {
        let mut violations = name::check(artifacts);
        if artifacts.is_empty() || !violations.is_empty() {
            return Ok(violations);
        }
        let pins = self.parts.index.pins_of(lease).await?;
        for (index, artifact) in artifacts.iter().enumerate() {
            let pin = pins.iter().find(|pin| pin.digest.as_str() == artifact.sha256);
            if pin.is_none_or(|pin| pin.size != artifact.size) {
                let field = format!("artifacts[{index}].sha256");
                let message = format!("{:?} was not uploaded for this lease", artifact.name);
                violations.push(Violation::new(field, message));
            }
        }
        Ok(violations)
    }

    /// Keeps the source of a submission until its rows hold it. To be asked before they are stored.
    pub async fn hold_source(&self, sha256: &str, size: u64) -> Result<()> {
        let digest = parse(sha256, "source.archive.sha256")?;
        let pin = upload::pin(digest, size, Holder::Submission, Some(self.submission()));
        let stored = self.parts.index.blob(&pin.digest).await?;
        if stored.is_some_and(|blob| blob.size == size) && self.parts.index.pin(&pin).await? {
            return Ok(());
        }
        let message = "no blob of this digest and size is stored; upload it with PutArtifact first";
        Err(Error::invalid("source.archive.sha256", message))
    }

    /// A stored blob.
    pub async fn blob(&self, sha256: &str) -> Result<BlobRow> {
        let digest = parse(sha256, "sha256")?;
        let blob = self.parts.index.blob(&digest).await?;
        blob.ok_or_else(|| Error::not_found("blob", digest))
    }

    /// Bytes of a blob from `offset` on: at most `limit`, none at its end.
    pub async fn read(&self, blob: &BlobRow, offset: u64, limit: u64) -> Result<Bytes> {
        let end = blob.size.min(offset.saturating_add(limit));
        if offset >= end {
            return Ok(Bytes::new());
        }
        let path = self.object(&blob.object);
        let read = self.parts.objects.get_range(&path, offset..end).await;
        let bytes = read.map_err(|e| Error::object("read", &path, e))?;
        if bytes.len() as u64 == end - offset {
            return Ok(bytes);
        }
        Err(Error::Corrupt { what: path.to_string() })
    }

    /// An artifact of a job by name.
    pub async fn artifact(&self, job: JobId, name: &str) -> Result<ArtifactRow> {
        let rows = self.parts.rows.artifacts_of(&[job]).await?;
        let row = rows.into_iter().find(|row| row.artifact.name == name);
        row.ok_or_else(|| Error::not_found("artifact", name))
    }

    /// The jobs of a build, or one of them, each with its artifacts by name.
    pub async fn list(
        &self,
        build: BuildId,
        job: Option<JobId>,
    ) -> Result<Vec<(JobRow, Vec<ArtifactRow>)>> {
        let mut jobs = self.parts.rows.jobs_of(build).await?;
        jobs.retain(|row| job.is_none_or(|job| row.job.id == job));
        if let (Some(job), true) = (job, jobs.is_empty()) {
            return Err(Error::not_found("job", job));
        }
        let ids: Vec<JobId> = jobs.iter().map(|row| row.job.id).collect();
        let rows = self.parts.rows.artifacts_of(&ids).await?;
        let of = |job: JobId| rows.iter().filter(|row| row.job == job).cloned().collect();
        Ok(jobs.into_iter().map(|row| (of(row.job.id), row)).map(|(a, row)| (row, a)).collect())
    }
}

fn parse(sha256: &str, field: &'static str) -> Result<Digest> {
    let digest = Digest::parse(sha256);
    digest.ok_or_else(|| Error::invalid(field, "needs 64 lower-case hexadecimal digits"))
}
