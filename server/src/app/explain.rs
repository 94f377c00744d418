//! Why a job waits, or how it ended.

use kiln_core::{
    agent::Agent,
    event::Change,
    id::JobId,
    job::{State, Status},
    schedule::{Wait, explain},
};

use super::{App, Error, Explanation, Result};
use crate::store::JobRow;

/// Events that are read at once.
const PAGE: i64 = 1_000;
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
            _ if row.job.cancelling() => wait.cancelled = self.cancel_reason(row).await?,
            _ => {}
        }
        Ok(wait)
    }

    /// What was given as the reason of the cancel that is under way; the event of it is among the last ones.
    async fn cancel_reason(&self, row: &JobRow) -> Result<Option<String>> {
        let build = self.0.store.build(row.job.build).await?;
        let mut end = build.map_or(0, |build| build.last_event);
        while end > 0 {
            let after = end.saturating_sub(PAGE).max(0);
            let most = u32::try_from(end - after).unwrap_or(0);
            let events = self.0.store.events(row.job.build, after, most).await?;
            let found = events.into_iter().rev().find_map(|event| match event.change {
                Change::Job(change) if change.job == row.job.id => Some(change),
                _ => None,
            });
            match found {
                Some(change) if !change.reason.is_empty() => return Ok(Some(change.reason)),
                // A job that is being cancelled has changed for nothing else since.
                Some(_) => return Ok(None),
                None => end = after,
            }
        }
        Ok(None)
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
