//! Reads of builds, jobs and events.

use std::collections::BTreeMap;

use kiln_core::{
    Millis,
    event::Record,
    id::{BuildId, JobId},
};

use super::{App, BuildView, Error, JobView, Result};
use crate::store::{self, BuildFilter, BuildRow, JobRow};

/// Rows of one page.
const MAX_PAGE: u32 = 1_000;

impl App {
    pub async fn build(&self, id: BuildId) -> Result<BuildView> {
        let build = self.0.store.build(id).await?.ok_or_else(|| Error::not_found("build", id))?;
        Ok(self.view(build).await?)
    }

    /// A build with its jobs by index.
    pub async fn build_with_jobs(&self, id: BuildId) -> Result<(BuildView, Vec<JobView>)> {
        let build = self.build(id).await?;
        let jobs = self.0.store.jobs_of(id).await?;
        let names: BTreeMap<JobId, String> =
            jobs.iter().map(|row| (row.job.id, row.name.clone())).collect();
        let mut needs: BTreeMap<JobId, Vec<String>> = BTreeMap::new();
        for (job, needed, _) in self.0.store.needs_of(id).await? {
            needs.entry(job).or_default().extend(names.get(&needed).cloned());
        }
        let mut views = Vec::with_capacity(jobs.len());
        for job in jobs {
            let needs = needs.remove(&job.job.id).unwrap_or_default();
            views.push(self.job_view(job, needs).await?);
        }
        Ok((build, views))
    }

    /// A page of builds, and where the next one begins. `project` in the filter is set by name.
    pub async fn builds(
        &self,
        project: Option<&str>,
        mut filter: BuildFilter,
        after: Option<(Millis, BuildId)>,
        limit: u32,
    ) -> Result<(Vec<BuildView>, Option<(Millis, BuildId)>)> {
        if let Some(name) = project {
            filter.project = Some(self.project(name).await?.id);
        }
        let limit = limit.clamp(1, MAX_PAGE);
        // One more than asked for tells whether there is a next page.
        let mut rows = self.0.store.builds(&filter, after, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more).map(|row| (row.created_at, row.id));
        let mut views = Vec::with_capacity(rows.len());
        for row in rows {
            views.push(self.view(row).await?);
        }
        Ok((views, next))
    }

    pub async fn job(&self, id: JobId) -> Result<JobView> {
        let job = self.0.store.job(id).await?.ok_or_else(|| Error::not_found("job", id))?;
        let needs = self.0.store.needed_by(&[id]).await?;
        let names = needs.into_iter().map(|(_, needed, _)| needed.name).collect();
        Ok(self.job_view(job, names).await?)
    }

    pub async fn events(&self, build: BuildId, after: i64, limit: u32) -> Result<Vec<Record>> {
        let events = self.0.store.events(build, after, limit.clamp(1, MAX_PAGE)).await?;
        if events.is_empty() && self.0.store.build(build).await?.is_none() {
            return Err(Error::not_found("build", build));
        }
        Ok(events)
    }

    pub(super) async fn view(&self, build: BuildRow) -> store::Result<BuildView> {
        let project = self.project_name(build.project).await?;
        Ok(BuildView { build, project })
    }

    pub(super) async fn job_view(&self, job: JobRow, needs: Vec<String>) -> store::Result<JobView> {
        let agent = match job.agent {
            Some(agent) => self.agent_name(agent).await?,
            None => None,
        };
        Ok(JobView { job, needs, agent })
    }
}
