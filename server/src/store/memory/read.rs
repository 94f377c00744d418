//! Reads of committed rows.

use std::cmp::Reverse;

use async_trait::async_trait;
use kiln_core::{
    Millis,
    agent::{Admission, Load},
    build::Counts,
    event::Record,
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId, SessionId, TokenId},
    schedule::Class,
    spec::JobSpec,
};
use uuid::Uuid;

use super::{
    super::{
        AgentRow, ArtifactRow, AuditFilter, AuditRow, AuthorityRow, BuildFilter, BuildRow, Census,
        EvictedAgentRow, GroupRow, JobRow, LeaseRow, ProjectRow, QueueRow, Result, SecretRow,
        SessionRow, Store, TokenRow, Tx,
    },
    Memory, State, all, entry, expire, queue, row, rows, secrets, sorted,
};

#[async_trait]
impl Store for Memory {
    fn writes_side_by_side(&self) -> bool {
        false
    }

    async fn begin(&self) -> Result<Box<dyn Tx>> {
        Ok(Box::new(self.open().await))
    }

    async fn schema(&self) -> Result<String> {
        Ok("memory".to_owned())
    }

    async fn project(&self, name: &str) -> Result<Option<ProjectRow>> {
        Ok(self
            .snapshot()
            .projects
            .values()
            .find(|row| row.name == name)
            .map(|row| (**row).clone()))
    }

    async fn projects(&self) -> Result<Vec<ProjectRow>> {
        let mut rows = all(&self.snapshot().projects);
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(rows)
    }

    async fn build(&self, id: BuildId) -> Result<Option<BuildRow>> {
        Ok(row(&self.snapshot().builds, &id))
    }

    async fn builds(
        &self,
        filter: &BuildFilter,
        after: Option<(Millis, BuildId)>,
        limit: u32,
    ) -> Result<Vec<BuildRow>> {
        let mut rows = all(&self.snapshot().builds);
        rows.retain(|row| passes(row, filter, after));
        if filter.oldest_first {
            rows.sort_by_key(position);
        } else {
            rows.sort_by_key(|row| Reverse(position(row)));
        }
        rows.truncate(limit as usize);
        Ok(rows)
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRow>> {
        Ok(row(&self.snapshot().jobs, &id))
    }

    async fn jobs_of(&self, build: BuildId) -> Result<Vec<JobRow>> {
        Ok(self.snapshot().jobs_of(build))
    }

    async fn needs_of(&self, build: BuildId) -> Result<Vec<(JobId, JobId, bool)>> {
        Ok(self.snapshot().edges(build).to_vec())
    }

    async fn needed_by(&self, jobs: &[JobId]) -> Result<Vec<(JobId, JobRow, bool)>> {
        let state = self.snapshot();
        let mut found = vec![];
        for id in sorted(jobs) {
            let Some(build) = state.jobs.get(&id).map(|row| row.job.build) else { continue };
            let edges = state.edges(build).iter().filter(|edge| edge.0 == id);
            found.extend(edges.filter_map(|edge| Some((id, row(&state.jobs, &edge.1)?, edge.2))));
        }
        found.sort_by_key(|(job, needed, _)| (*job, needed.index));
        Ok(found)
    }

    async fn spec(&self, job: JobId) -> Result<Option<JobSpec>> {
        Ok(row(&self.snapshot().specs, &job))
    }

    async fn specs(&self, jobs: &[JobId]) -> Result<Vec<(JobId, JobSpec)>> {
        let state = self.snapshot();
        let known = sorted(jobs).into_iter();
        Ok(known.filter_map(|id| Some((id, row(&state.specs, &id)?))).collect())
    }

    async fn class(&self, id: ClassId) -> Result<Option<Class>> {
        Ok(row(&self.snapshot().classes, &id))
    }

    async fn waiting_classes(&self) -> Result<Vec<ClassId>> {
        Ok(queue::waiting_classes(&self.snapshot()).into_keys().collect())
    }

    async fn events(&self, build: BuildId, after: i64, limit: u32) -> Result<Vec<Record>> {
        let state = self.snapshot();
        let records = state.events.get(&build).map(|records| records.as_slice());
        let later = records.unwrap_or_default().iter().filter(|record| record.number > after);
        Ok(later.take(limit as usize).cloned().collect())
    }

    async fn lease(&self, id: LeaseId) -> Result<Option<LeaseRow>> {
        Ok(row(&self.snapshot().leases, &id))
    }

    async fn leases_of_job(&self, job: JobId) -> Result<Vec<LeaseRow>> {
        let mut rows = all(&self.snapshot().leases);
        rows.retain(|row| row.job == job);
        Ok(rows)
    }

    async fn ended_builds(&self, before: Millis, limit: u32) -> Result<Vec<BuildId>> {
        Ok(expire::ended_builds(&self.snapshot(), before, limit))
    }

    async fn leases_of_build(&self, build: BuildId) -> Result<Vec<LeaseId>> {
        Ok(expire::leases_of(&self.snapshot(), build))
    }

    async fn open_leases(&self, agents: Option<&[AgentId]>) -> Result<Vec<LeaseRow>> {
        let mut rows = all(&self.snapshot().leases);
        let is_asked = |row: &LeaseRow| agents.is_none_or(|agents| agents.contains(&row.agent));
        rows.retain(|row| row.phase.is_open() && is_asked(row));
        Ok(rows)
    }

    async fn artifacts_of(&self, jobs: &[JobId]) -> Result<Vec<ArtifactRow>> {
        let state = self.snapshot();
        let lists = sorted(jobs).into_iter().filter_map(|job| row(&state.artifacts, &job));
        Ok(lists.flatten().collect())
    }

    async fn agents(&self) -> Result<Vec<AgentRow>> {
        let mut rows = all(&self.snapshot().agents);
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(rows)
    }

    async fn agent(&self, id: AgentId) -> Result<Option<AgentRow>> {
        Ok(row(&self.snapshot().agents, &id))
    }

    async fn agents_of(&self, ids: &[AgentId]) -> Result<Vec<AgentRow>> {
        Ok(rows(&self.snapshot().agents, &sorted(ids)))
    }

    async fn admissions(&self, agents: Option<&[AgentId]>) -> Result<Vec<(AgentId, Admission)>> {
        let mut rows = all(&self.snapshot().agents);
        rows.retain(|row| agents.is_none_or(|agents| agents.contains(&row.id)));
        Ok(rows.into_iter().map(|row| (row.id, row.admission)).collect())
    }

    async fn evicted_agent(&self, id: AgentId) -> Result<Option<EvictedAgentRow>> {
        Ok(row(&self.snapshot().evicted_agents, &id))
    }

    async fn sessions(&self) -> Result<Vec<SessionRow>> {
        let mut rows = all(&self.snapshot().sessions);
        rows.retain(|row| row.open);
        Ok(rows)
    }

    async fn beat(&self, beats: &[(SessionId, Load)], at: Millis) -> Result<Vec<SessionId>> {
        let mut tx = self.open().await;
        let mut open = vec![];
        for &(id, load) in beats {
            let Some(session) = row(&tx.state.sessions, &id).filter(|row| row.open) else {
                continue;
            };
            let agent = session.agent;
            super::put(
                &mut tx.state.sessions,
                id,
                SessionRow { beat: session.beat + 1, ..session },
            );
            if let Some(row) = row(&tx.state.agents, &agent) {
                super::put(&mut tx.state.agents, agent, AgentRow { load, seen_at: at, ..row });
            }
            open.push(id);
        }
        tx.publish()?;
        Ok(open)
    }

    async fn tokens(&self) -> Result<Vec<TokenRow>> {
        Ok(all(&self.snapshot().tokens))
    }

    async fn token(&self, id: TokenId) -> Result<Option<TokenRow>> {
        Ok(row(&self.snapshot().tokens, &id))
    }

    async fn audit(
        &self,
        filter: &AuditFilter,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AuditRow>> {
        let state = self.snapshot();
        let below = state.audit.range(..before.unwrap_or(i64::MAX)).rev();
        let rows = below.map(|(_, row)| row.as_ref()).filter(|row| wanted(row, filter));
        Ok(rows.take(limit as usize).cloned().collect())
    }

    async fn secrets(&self, project: ProjectId) -> Result<Vec<SecretRow>> {
        Ok(secrets::of_project(&self.snapshot(), project))
    }

    async fn secret_keys(&self) -> Result<Vec<String>> {
        let state = self.snapshot();
        let mut keys: Vec<String> = state.secrets.values().map(|row| row.key.clone()).collect();
        keys.extend(state.authorities.values().map(|row| row.key.clone()));
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }

    async fn secrets_of_other_keys(&self, key: &str, limit: u32) -> Result<Vec<SecretRow>> {
        let mut rows = all(&self.snapshot().secrets);
        rows.retain(|row| row.key != key);
        rows.truncate(limit as usize);
        Ok(rows)
    }

    async fn authorities(&self) -> Result<Vec<AuthorityRow>> {
        let mut rows = all(&self.snapshot().authorities);
        rows.reverse();
        Ok(rows)
    }

    async fn done_builds_with_secrets(&self, limit: u32) -> Result<Vec<BuildId>> {
        Ok(secrets::done_builds(&self.snapshot(), limit))
    }

    async fn granted(&self, leases: &[LeaseId]) -> Result<Vec<(LeaseId, SecretRow)>> {
        Ok(secrets::granted(&self.snapshot(), leases))
    }

    async fn ended_leases_with_secrets(
        &self,
        after: Option<LeaseId>,
        limit: u32,
    ) -> Result<Vec<LeaseId>> {
        Ok(secrets::of_ended_leases(&self.snapshot(), after, limit))
    }

    async fn census(&self, now: Millis) -> Result<Census> {
        Ok(queue::census(&self.snapshot(), now))
    }

    async fn queue(&self) -> Result<Vec<QueueRow>> {
        Ok(queue::by_project(&self.snapshot()))
    }

    async fn oldest_queued(&self, limit: u32) -> Result<Vec<JobRow>> {
        Ok(queue::oldest(&self.snapshot(), limit))
    }

    async fn ahead_of(&self, job: &JobRow) -> Result<u32> {
        Ok(queue::ahead_of(&self.snapshot(), job))
    }

    async fn members(&self, group: Uuid) -> Result<Vec<JobRow>> {
        Ok(self.snapshot().members(group).cloned().collect())
    }

    async fn group(&self, id: Uuid) -> Result<Option<GroupRow>> {
        Ok(row(&self.snapshot().groups, &id))
    }

    async fn overdue(&self, now: Millis, limit: u32) -> Result<Vec<(BuildId, JobId)>> {
        Ok(queue::overdue(&self.snapshot(), now, limit))
    }

    async fn next_not_before(&self, now: Millis) -> Result<Option<Millis>> {
        Ok(queue::next_not_before(&self.snapshot(), now))
    }

    async fn inconsistent(&self, limit: u32) -> Result<Vec<BuildId>> {
        let state = self.snapshot();
        let wrong = state.builds.values().filter(|build| !is_consistent(&state, build));
        Ok(wrong.map(|build| build.id).take(limit as usize).collect())
    }
}

fn position(row: &BuildRow) -> (Millis, BuildId) {
    (row.created_at, row.id)
}

fn passes(row: &BuildRow, filter: &BuildFilter, after: Option<(Millis, BuildId)>) -> bool {
    let behind =
        |after| if filter.oldest_first { position(row) > after } else { position(row) < after };
    filter.project.is_none_or(|project| row.project == project)
        && (filter.states.is_empty() || filter.states.contains(&row.state()))
        && filter.created_from.is_none_or(|from| row.created_at >= from)
        && filter.created_until.is_none_or(|until| row.created_at < until)
        && row.title.to_lowercase().contains(&filter.title_contains.to_lowercase())
        && after.is_none_or(behind)
}

fn is_consistent(state: &State, build: &BuildRow) -> bool {
    let jobs = state.jobs_of(build.id);
    let mut counts = Counts::default();
    let mut open = super::Table::<JobId, u32>::default();
    for row in &jobs {
        counts.add(row.job.status(), row.allow_failure);
    }
    for &(job, needed, _) in state.edges(build.id) {
        let done = state.jobs.get(&needed).is_some_and(|row| row.job.status().is_done());
        *entry(&mut open, job) += u32::from(!done);
    }
    let blocked = jobs.iter().filter(|row| row.job.status() == kiln_core::job::Status::Blocked);
    counts == build.counts
        && blocked
            .into_iter()
            .all(|row| row.open_needs == open.get(&row.job.id).map_or(0, |count| **count))
}

fn wanted(row: &AuditRow, filter: &AuditFilter) -> bool {
    let either = |text: &str, id: &str, name: &str| text.is_empty() || text == id || text == name;
    let act = &row.act;
    let kind = act.action.strip_prefix(filter.action.as_str());
    either(&filter.actor, &row.actor, &row.actor_name)
        && either(&filter.object, &act.object, &act.object_name)
        && (filter.action.is_empty()
            || kind.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
        && filter.from.is_none_or(|from| row.at >= from)
        && filter.until.is_none_or(|until| row.at < until)
}
