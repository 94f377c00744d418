//! Why a job waits, or how it ended.

use kiln_core::{
    agent::Agent,
    id::JobId,
    job::{State, Status},
    schedule::{Wait, explain},
};

use super::{App, Error, Explanation, Result};
use crate::store::JobRow;

/// Names of group members that are shown.
const NAMES: usize = 10;

impl App {
    pub async fn explain(&self, job: JobId) -> Result<Explanation> {
        let view = self.job(job).await?;
        let row = &view.job;
        let class = self.class(row.class).await?;
        let class = class.ok_or_else(|| Error::not_found("class", row.class))?;
        let agents: Vec<Agent> = match row.job.state {
            State::Queued { .. } => {
                self.agents().await?.into_iter().map(|view| view.agent).collect()
            }
            _ => vec![],
        };
        let wait = self.wait_of(row).await?;
        let now = self.0.clock.now();
        let (summary, reasons, agents) = explain(&row.job, &class, &wait, &agents, now);
        Ok(Explanation { job: view, summary, reasons, agents })
    }

    async fn wait_of(&self, row: &JobRow) -> Result<Wait> {
        let mut wait = Wait { returned: row.returned.clone(), ..Wait::default() };
        match row.job.state {
            State::Blocked => {
                let needs = self.0.store.needed_by(&[row.job.id]).await?.into_iter();
                let open = needs.filter(|(_, needed, _)| !needed.job.status().is_done());
                wait.needs = open.map(|(_, needed, _)| needed.name).collect();
            }
            State::Queued { .. } => {
                let projects = self.0.store.projects().await?;
                if let Some(project) = projects.iter().find(|project| project.id == row.project) {
                    wait.project_paused = project.paused;
                    wait.project_running = project.running;
                    wait.project_limit = (project.max_running > 0).then_some(project.max_running);
                }
                wait.group = self.group_ahead(row).await?;
                wait.ahead = self.0.store.ahead_of(row).await?;
            }
            _ => {}
        }
        Ok(wait)
    }

    /// Its group and who goes first, where that keeps it from being claimed.
    async fn group_ahead(&self, row: &JobRow) -> Result<Option<(String, Vec<String>)>> {
        let Some(id) = row.group.filter(|_| !row.claimable) else { return Ok(None) };
        let Some(group) = self.0.store.group(id).await? else { return Ok(None) };
        let members = self.0.store.members(id).await?.into_iter();
        let first = members
            .filter(|member| member.job.status() != Status::Queued || member.job.id < row.job.id)
            .take(NAMES)
            .map(|member| member.name)
            .collect();
        Ok(Some((group.name, first)))
    }
}
