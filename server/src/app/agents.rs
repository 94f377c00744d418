//! Agents as an administrator sees and steers them, and the queue.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use kiln_core::{
    Millis,
    agent::Admission,
    id::{AgentId, LeaseId},
};

use super::{
    AgentView, App, Error, JobView, QueueView, Result,
    claim::{as_agent, busy},
    reaper::lost,
    work::Work,
};
use crate::store::{
    AgentRow, AuditAct, EvictedAgentRow, LeaseRow, Tx,
    jobs::{Effects, apply},
};

const MAX_NOTE: usize = 500;
/// The oldest jobs that the queue shows.
const OLDEST: u32 = 20;

impl App {
    pub async fn agents(&self) -> Result<Vec<AgentView>> {
        let rows = self.0.store.agents().await?;
        let online: BTreeSet<AgentId> =
            self.0.store.sessions().await?.into_iter().map(|session| session.agent).collect();
        let mut leases: BTreeMap<AgentId, Vec<LeaseRow>> = BTreeMap::new();
        for lease in self.0.store.open_leases(None).await? {
            leases.entry(lease.agent).or_default().push(lease);
        }
        Ok(rows
            .into_iter()
            .map(|row| {
                let open = leases.remove(&row.id).unwrap_or_default();
                view(row, &online, &open)
            })
            .collect())
    }

    pub async fn agent(&self, id: AgentId) -> Result<AgentRow> {
        self.0.store.agent(id).await?.ok_or_else(|| Error::not_found("agent", id))
    }

    pub async fn pause_agent(
        &self,
        name: &str,
        note: &str,
        duration: Option<Millis>,
    ) -> Result<AgentView> {
        if note.len() > MAX_NOTE {
            return Err(Error::invalid("note", "must have at most 500 bytes"));
        }
        if duration.is_some_and(|duration| duration <= 0) {
            return Err(Error::invalid("duration", "must be longer than nothing"));
        }
        let resume_at = duration.map(|duration| self.0.clock.now().saturating_add(duration));
        self.admit(name, Admission::Paused { note: note.to_owned(), resume_at }).await
    }

    pub async fn resume_agent(&self, name: &str) -> Result<AgentView> {
        self.admit(name, Admission::Open).await
    }

    pub async fn drain_agent(&self, name: &str) -> Result<AgentView> {
        self.admit(name, Admission::Draining).await
    }

    /// Removes an agent; returns how many leases were lost with it.
    pub async fn evict_agent(&self, name: &str) -> Result<u32> {
        let agent = self.agent_named(name).await?.id;
        let lost = self.write(&Evict { agent, name }).await?;
        self.0.dispatch.forget(agent);
        Ok(lost)
    }

    /// The queue by project, and the oldest jobs that wait.
    pub async fn queue(&self) -> Result<(Vec<QueueView>, Vec<JobView>)> {
        let mut projects = vec![];
        for row in self.0.store.queue().await? {
            projects.push(QueueView {
                project: self.project_name(row.project).await?,
                queued: row.queued,
                running: row.running,
                oldest: row.oldest,
            });
        }
        let mut oldest = vec![];
        for job in self.0.store.oldest_queued(OLDEST).await? {
            oldest.push(self.job_view(job, vec![]).await?);
        }
        Ok((projects, oldest))
    }

    async fn agent_named(&self, name: &str) -> Result<AgentRow> {
        let rows = self.0.store.agents().await?;
        let row = rows.into_iter().find(|row| row.name == name);
        row.ok_or_else(|| Error::not_found("agent", name))
    }

    async fn admit(&self, name: &str, admission: Admission) -> Result<AgentView> {
        let agent = self.agent_named(name).await?.id;
        let row = self.write(&Admit { agent, name, admission: &admission }).await?;
        self.0.dispatch.change(agent, |known| known.admission = admission);
        let sessions = self.0.store.sessions().await?;
        let online = sessions.into_iter().map(|session| session.agent).collect();
        let leases = self.0.store.open_leases(Some(&[agent])).await?;
        Ok(view(row, &online, &leases))
    }
}

fn view(row: AgentRow, online: &BTreeSet<AgentId>, leases: &[LeaseRow]) -> AgentView {
    let seen_at = row.seen_at;
    let online = online.contains(&row.id);
    let ids: Vec<LeaseId> = leases.iter().map(|lease| lease.id).collect();
    AgentView { agent: as_agent(row, online, busy(leases)), leases: ids, seen_at }
}

struct Admit<'a> {
    agent: AgentId,
    name: &'a str,
    admission: &'a Admission,
}

#[async_trait]
impl Work for Admit<'_> {
    type Output = AgentRow;

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<(AgentRow, Effects)> {
        let row = tx.lock_agents(&[self.agent]).await?.pop();
        let mut row = row.ok_or_else(|| Error::not_found("agent", self.name))?;
        row.admission = self.admission.clone();
        tx.save_agents(std::slice::from_ref(&row)).await?;
        let agents = BTreeSet::from([self.agent]);
        Ok((row, Effects { agents, ..Effects::default() }))
    }

    fn act(&self, _: &AgentRow) -> Option<AuditAct> {
        let act = |action| AuditAct::new(action, self.agent, self.name);
        Some(match self.admission {
            Admission::Open => act("agent.resume"),
            Admission::Paused { note, .. } => act("agent.pause").with(note),
            Admission::Draining => act("agent.drain"),
        })
    }
}

struct Evict<'a> {
    agent: AgentId,
    name: &'a str,
}

#[async_trait]
impl Work for Evict<'_> {
    type Output = u32;

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<(u32, Effects)> {
        let row = tx.lock_agents(&[self.agent]).await?.pop();
        let row = row.ok_or_else(|| Error::not_found("agent", self.name))?;
        let sessions = tx.lock_sessions_of(&[self.agent]).await?;
        tx.close_sessions(&sessions.iter().map(|session| session.id).collect::<Vec<_>>()).await?;
        let leases = tx.open_leases(&[self.agent]).await?;
        let transitions = lost(&leases, "its agent was removed");
        let now = app.0.clock.now();
        let mut effects = apply(tx, &transitions, now).await?.effects;
        tx.evict_agent(&EvictedAgentRow {
            id: row.id,
            name: row.name,
            credential_sha256: row.credential_sha256,
            evicted_at: now,
        })
        .await?;
        effects.agents.insert(self.agent);
        Ok((u32::try_from(leases.len()).unwrap_or(u32::MAX), effects))
    }

    fn act(&self, lost: &u32) -> Option<AuditAct> {
        let act = AuditAct::new("agent.evict", self.agent, self.name);
        Some(act.with(format!("{lost} leases lost")))
    }
}
