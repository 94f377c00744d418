//! Leases as they are given to agents: all that the agent needs, in one message.

use std::collections::BTreeMap;

use kiln_core::{
    id::{JobId, LeaseId},
    session::{Artifact, Assignment},
    spec::JobSpec,
};

use super::{App, Error, Result};
use crate::store::LeaseRow;

impl App {
    /// A lease as it is given to its agent, to be said again.
    pub async fn assignment(&self, lease: LeaseId) -> Result<Assignment> {
        let row = self.0.store.lease(lease).await?;
        let row = row.ok_or_else(|| Error::not_found("lease", lease))?;
        let mut made = self.assignments(&[row]).await?;
        made.pop().ok_or_else(|| Error::not_found("lease", lease))
    }

    pub(super) async fn assignments(&self, leases: &[LeaseRow]) -> Result<Vec<Assignment>> {
        if leases.is_empty() {
            return Ok(vec![]);
        }
        let jobs: Vec<JobId> = leases.iter().map(|lease| lease.job).collect();
        let mut specs: BTreeMap<JobId, JobSpec> =
            self.0.store.specs(&jobs).await?.into_iter().collect();
        let mut inputs = self.inputs(&jobs).await?;
        let mut made = Vec::with_capacity(leases.len());
        for lease in leases {
            let Some(spec) = specs.remove(&lease.job) else { continue };
            self.0.names.learn_lease(lease);
            made.push(Assignment {
                lease: lease.id,
                job: lease.job,
                build: lease.build,
                project: self.project_name(lease.project).await?,
                attempt: lease.attempt,
                inputs: inputs.remove(&lease.job).unwrap_or_default(),
                exclusive: spec.is_exclusive(),
                spec,
            });
        }
        Ok(made)
    }

    /// Artifacts of the needed jobs that a job asked for.
    async fn inputs(&self, jobs: &[JobId]) -> Result<BTreeMap<JobId, Vec<Artifact>>> {
        let mut sources: BTreeMap<JobId, Vec<JobId>> = BTreeMap::new();
        for (job, needed, artifacts) in self.0.store.needed_by(jobs).await? {
            if artifacts {
                sources.entry(needed.job.id).or_default().push(job);
            }
        }
        if sources.is_empty() {
            return Ok(BTreeMap::new());
        }
        let needed: Vec<JobId> = sources.keys().copied().collect();
        let mut inputs: BTreeMap<JobId, Vec<Artifact>> = BTreeMap::new();
        for row in self.0.store.artifacts_of(&needed).await? {
            for job in sources.get(&row.job).into_iter().flatten() {
                inputs.entry(*job).or_default().push(row.artifact.clone());
            }
        }
        Ok(inputs)
    }
}
