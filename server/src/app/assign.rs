//! Leases as they are given to agents: all that the agent needs, in one message, but for the secrets (`grants`).

use std::collections::BTreeMap;

use kiln_core::{
    id::{JobId, LeaseId},
    session::{Artifact, Assignment},
    spec::JobSpec,
    trace::Trace,
};

use super::{App, Error, Result, trace};
use crate::store::{self, LeaseRow, jobs::Moved};

/// What jobs are given to agents with, beside their leases.
#[derive(Debug, Default)]
pub(super) struct Contents {
    specs: BTreeMap<JobId, JobSpec>,
    inputs: BTreeMap<JobId, Vec<Artifact>>,
    traces: BTreeMap<LeaseId, Trace>,
}

impl Contents {
    /// Learns where leases belong that were just given.
    pub(super) fn trace(&mut self, moved: &[Moved]) {
        let traced = moved.iter().filter_map(|moved| Some((&moved.lease, moved.traced.as_ref()?)));
        self.traces
            .extend(traced.map(|(lease, (place, _))| (lease.id, trace::of_lease(*place, lease))));
    }

    /// Takes what it has of the job of this lease.
    pub(super) fn assignment(&mut self, lease: &LeaseRow, project: &str) -> Option<Assignment> {
        let spec = self.specs.remove(&lease.job)?;
        Some(Assignment {
            lease: lease.id,
            job: lease.job,
            build: lease.build,
            project: project.to_owned(),
            attempt: lease.attempt,
            inputs: self.inputs.remove(&lease.job).unwrap_or_default(),
            exclusive: spec.is_exclusive(),
            trace: self.traces.remove(&lease.id),
            spec,
        })
    }
}

impl App {
    /// A lease as it is given to its agent, to be said again.
    pub(super) async fn assignment(&self, lease: &LeaseRow) -> Result<Assignment> {
        self.0.names.learn_lease(lease);
        let mut contents = self.contents(&[lease.job]).await?;
        let build = self.0.store.build(lease.build).await?;
        if let Some(place) = build.and_then(|build| build.trace()) {
            contents.traces.insert(lease.id, trace::of_lease(place, lease));
        }
        let project = self.project_name(lease.project).await?;
        contents.assignment(lease, &project).ok_or_else(|| Error::not_found("lease", lease.id))
    }

    /// What never changes of jobs that are claimable, so that it can be read beside the transaction that leases them.
    pub(super) async fn contents(&self, jobs: &[JobId]) -> store::Result<Contents> {
        if jobs.is_empty() {
            return Ok(Contents::default());
        }
        let (specs, inputs) = tokio::try_join!(self.0.store.specs(jobs), self.inputs(jobs))?;
        Ok(Contents { specs: specs.into_iter().collect(), inputs, ..Contents::default() })
    }

    /// Artifacts of the needed jobs that a job asked for.
    async fn inputs(&self, jobs: &[JobId]) -> store::Result<BTreeMap<JobId, Vec<Artifact>>> {
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
