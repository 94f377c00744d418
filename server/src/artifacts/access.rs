//! What those who judge access must know: whose a job or a build is, and what the leases of an agent need.

use kiln_core::{
    id::{AgentId, BuildId, JobId},
    spec::Source,
};

use super::{Artifacts, BlobRow};
use crate::{
    store::{BuildRow, JobRow},
    uploads::{Error, Result},
};

impl Artifacts {
    /// The build, for whoever must judge whether its artifacts may be listed.
    pub async fn build(&self, id: BuildId) -> Result<BuildRow> {
        let row = self.parts.rows.build(id).await?;
        row.ok_or_else(|| Error::not_found("build", id))
    }

    /// The job, for whoever must judge whether its artifacts may be read.
    pub async fn job(&self, id: JobId) -> Result<JobRow> {
        let row = self.parts.rows.job(id).await?;
        row.ok_or_else(|| Error::not_found("job", id))
    }

    /// A blob that an open lease of this agent needs: its source, or an artifact that is placed into its workspace.
    /// Any other does not exist for the agent.
    pub async fn needed(&self, agent: AgentId, sha256: &str) -> Result<BlobRow> {
        let blob = self.blob(sha256).await?;
        if self.needs(agent, sha256).await? {
            return Ok(blob);
        }
        Err(Error::not_found("blob", blob.digest))
    }

    async fn needs(&self, agent: AgentId, sha256: &str) -> Result<bool> {
        let rows = &self.parts.rows;
        let jobs: Vec<JobId> =
            rows.open_leases(Some(&[agent])).await?.iter().map(|lease| lease.job).collect();
        if jobs.is_empty() {
            return Ok(false);
        }
        let is_source = |source: &Option<Source>| matches!(source, Some(Source::Archive { sha256: digest, .. }) if digest == sha256);
        if rows.specs(&jobs).await?.iter().any(|(_, spec)| is_source(&spec.source)) {
            return Ok(true);
        }
        let needed = rows.needed_by(&jobs).await?;
        let placed: Vec<JobId> = needed
            .iter()
            .filter(|(_, _, artifacts)| *artifacts)
            .map(|(_, needed, _)| needed.job.id)
            .collect();
        let artifacts = rows.artifacts_of(&placed).await?;
        Ok(artifacts.iter().any(|row| row.artifact.sha256 == sha256))
    }
}
