//! The write transaction.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use kiln_core::{
    Millis,
    event::Record,
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId, SecretId, SessionId, TokenId},
    schedule::{Candidate, Class},
};
use uuid::Uuid;

use super::{
    super::{
        AgentRow, ArtifactRow, AuditRow, AuthorityRow, BuildRow, Busy, Error, EvictedAgentRow,
        GrantRow, GroupRow, JobRow, LeaseRow, NewJob, ProjectRow, Result, SecretRow, SessionRow,
        TokenRow, Tx,
    },
    MemoryTx, all, entry, expire, is_open, is_queued, put, queue, row, rows, secrets, sorted,
};

#[async_trait]
impl Tx for MemoryTx {
    async fn commit(self: Box<Self>) -> Result<()> {
        self.publish()
    }

    async fn insert_project(&mut self, row: &ProjectRow) -> Result<()> {
        if self.state.projects.values().any(|other| other.name == row.name) {
            return Err(Error::Exists { what: "project", name: row.name.clone() });
        }
        put(&mut self.state.projects, row.id, row.clone());
        Ok(())
    }

    async fn lock_projects(&mut self, ids: &[ProjectId]) -> Result<Vec<ProjectRow>> {
        Ok(rows(&self.state.projects, &sorted(ids)))
    }

    async fn save_projects(&mut self, rows: &[ProjectRow]) -> Result<()> {
        for row in rows {
            put(&mut self.state.projects, row.id, row.clone());
        }
        Ok(())
    }

    async fn insert_builds(&mut self, rows: &[BuildRow]) -> Result<Vec<BuildId>> {
        let mut inserted = vec![];
        for row in rows {
            if let Some(key) = &row.key {
                let key = (row.project, key.clone());
                if self.state.keys.contains_key(&key) {
                    continue;
                }
                put(&mut self.state.keys, key, row.id);
            }
            put(&mut self.state.builds, row.id, row.clone());
            inserted.push(row.id);
        }
        Ok(inserted)
    }

    async fn builds_by_key(&mut self, keys: &[(ProjectId, String)]) -> Result<Vec<BuildRow>> {
        Ok(rows(&self.state.builds, &rows(&self.state.keys, keys)))
    }

    async fn lock_builds(&mut self, ids: &[BuildId]) -> Result<Vec<BuildRow>> {
        Ok(rows(&self.state.builds, &sorted(ids)))
    }

    async fn delete_build(&mut self, id: BuildId, before: Millis) -> Result<bool> {
        Ok(expire::delete_build(&mut self.state, id, before))
    }

    async fn delete_audit(&mut self, before: Millis, limit: u32) -> Result<u64> {
        Ok(expire::delete_audit(&mut self.state, before, limit))
    }

    async fn save_builds(&mut self, rows: &[BuildRow]) -> Result<()> {
        for new in rows {
            if let Some(old) = row(&self.state.builds, &new.id) {
                let saved = BuildRow {
                    counts: new.counts,
                    last_event: new.last_event,
                    finished_at: new.finished_at,
                    ..old
                };
                put(&mut self.state.builds, new.id, saved);
            }
        }
        Ok(())
    }

    async fn ensure_classes(&mut self, classes: &[(ClassId, Class)]) -> Result<Vec<ClassId>> {
        let mut ids = vec![];
        for (id, class) in classes {
            let known = self.state.classes.iter().find(|(_, known)| ***known == *class);
            let known = known.map(|(id, _)| *id);
            if known.is_none() {
                put(&mut self.state.classes, *id, class.clone());
            }
            ids.push(known.unwrap_or(*id));
        }
        Ok(ids)
    }

    async fn ensure_groups(&mut self, groups: &[GroupRow]) -> Result<Vec<GroupRow>> {
        let mut saved = vec![];
        for group in groups {
            let mut known = self.state.groups.values();
            let known = known.find(|row| row.project == group.project && row.name == group.name);
            let id = known.map_or(group.id, |row| row.id);
            let group = GroupRow { id, ..group.clone() };
            put(&mut self.state.groups, id, group.clone());
            saved.push(group);
        }
        Ok(saved)
    }

    async fn lock_groups(&mut self, ids: &[Uuid]) -> Result<Vec<GroupRow>> {
        Ok(rows(&self.state.groups, &sorted(ids)))
    }

    async fn group_members(&mut self, group: Uuid, queued: u32) -> Result<Vec<JobRow>> {
        let mut left = queued;
        let wanted = self.state.members(group).filter(|row| {
            let taken = is_open(row) || left > 0;
            left -= u32::from(taken && is_queued(row));
            taken
        });
        Ok(wanted.cloned().collect())
    }

    async fn insert_jobs(&mut self, jobs: &[NewJob]) -> Result<()> {
        for NewJob { row, spec, needs } in jobs {
            let (id, build) = (row.job.id, row.job.build);
            put(&mut self.state.jobs, id, row.clone());
            put(&mut self.state.specs, id, spec.clone());
            entry(&mut self.state.build_jobs, build).push(id);
            entry(&mut self.state.needs, build)
                .extend(needs.iter().map(|&(needed, artifacts)| (id, needed, artifacts)));
        }
        for build in sorted(&jobs.iter().map(|new| new.row.job.build).collect::<Vec<_>>()) {
            let index = |id: &JobId| self.state.jobs.get(id).map(|row| row.index);
            entry(&mut self.state.build_jobs, build).sort_by_key(index);
            entry(&mut self.state.needs, build).sort_unstable();
        }
        Ok(())
    }

    async fn jobs(&mut self, ids: &[JobId]) -> Result<Vec<JobRow>> {
        Ok(rows(&self.state.jobs, &sorted(ids)))
    }

    async fn jobs_of(&mut self, build: BuildId) -> Result<Vec<JobRow>> {
        Ok(self.state.jobs_of(build))
    }

    async fn dependents(&mut self, needed: &[JobId]) -> Result<Vec<(JobId, JobRow)>> {
        let mut found = vec![];
        for id in sorted(needed) {
            let Some(build) = self.state.jobs.get(&id).map(|row| row.job.build) else { continue };
            let edges = self.state.edges(build).iter().filter(|edge| edge.1 == id);
            found.extend(edges.filter_map(|edge| Some((id, row(&self.state.jobs, &edge.0)?))));
        }
        Ok(found)
    }

    async fn edges(&mut self, build: BuildId) -> Result<Vec<(JobId, JobId)>> {
        Ok(self.state.edges(build).iter().map(|edge| (edge.0, edge.1)).collect())
    }

    async fn save_jobs(&mut self, rows: &[JobRow]) -> Result<Vec<JobId>> {
        let mut conflicts = vec![];
        for row in rows {
            let id = row.job.id;
            if self.state.jobs.get(&id).is_some_and(|old| old.version == row.version) {
                let saved = JobRow { version: row.version + 1, ..row.clone() };
                put(&mut self.state.jobs, id, saved);
            } else {
                conflicts.push(id);
            }
        }
        Ok(conflicts)
    }

    async fn append_events(&mut self, events: &[Record]) -> Result<()> {
        for event in events {
            let records = entry(&mut self.state.events, event.build);
            match records.binary_search_by_key(&event.number, |record| record.number) {
                Ok(_) => return Err(Error::Conflict),
                Err(place) => records.insert(place, event.clone()),
            }
        }
        Ok(())
    }

    async fn insert_leases(&mut self, rows: &[LeaseRow]) -> Result<()> {
        self.save_leases(rows).await
    }

    async fn leases(&mut self, ids: &[LeaseId]) -> Result<Vec<LeaseRow>> {
        Ok(rows(&self.state.leases, &sorted(ids)))
    }

    async fn open_leases(&mut self, agents: &[AgentId]) -> Result<Vec<LeaseRow>> {
        let open = self.state.leases.values().filter(|row| row.phase.is_open());
        Ok(open.filter(|row| agents.contains(&row.agent)).map(|row| (**row).clone()).collect())
    }

    async fn busy(&mut self, agents: &[AgentId]) -> Result<BTreeMap<AgentId, Busy>> {
        let mut held: BTreeMap<AgentId, Busy> = BTreeMap::new();
        let leases = self.state.leases.values().filter(|row| row.phase.is_open());
        for lease in leases.filter(|row| agents.contains(&row.agent)) {
            *held.entry(lease.agent).or_default().entry(lease.backend.clone()).or_default() += 1;
        }
        Ok(held)
    }

    async fn save_leases(&mut self, rows: &[LeaseRow]) -> Result<()> {
        for row in rows {
            put(&mut self.state.leases, row.id, row.clone());
        }
        Ok(())
    }

    async fn put_artifacts(&mut self, jobs: &[JobId], rows: &[ArtifactRow]) -> Result<()> {
        for &job in jobs {
            let mut list: Vec<_> = rows.iter().filter(|row| row.job == job).cloned().collect();
            list.sort_by(|a, b| a.artifact.name.cmp(&b.artifact.name));
            put(&mut self.state.artifacts, job, list);
        }
        Ok(())
    }

    async fn candidates(
        &mut self,
        classes: &[ClassId],
        each: u32,
        now: Millis,
    ) -> Result<Vec<(Candidate, BuildId)>> {
        Ok(queue::candidates(&self.state, classes, each, now))
    }

    async fn save_affinities(&mut self, rows: &[(String, AgentId, Millis)]) -> Result<()> {
        for (affinity, agent, at) in rows {
            put(&mut self.state.affinities, affinity.clone(), (*agent, *at));
        }
        Ok(())
    }

    async fn waiting_classes(&mut self) -> Result<BTreeMap<ClassId, Class>> {
        Ok(queue::waiting_classes(&self.state))
    }

    async fn insert_agent(&mut self, row: &AgentRow) -> Result<()> {
        if self.state.agents.values().any(|other| other.name == row.name) {
            return Err(Error::Exists { what: "agent", name: row.name.clone() });
        }
        put(&mut self.state.agents, row.id, row.clone());
        Ok(())
    }

    async fn lock_agents(&mut self, ids: &[AgentId]) -> Result<Vec<AgentRow>> {
        Ok(rows(&self.state.agents, &sorted(ids)))
    }

    async fn save_agents(&mut self, rows: &[AgentRow]) -> Result<()> {
        for row in rows {
            put(&mut self.state.agents, row.id, row.clone());
        }
        Ok(())
    }

    async fn evict_agent(&mut self, row: &EvictedAgentRow) -> Result<()> {
        Arc::make_mut(&mut self.state.agents).remove(&row.id);
        Arc::make_mut(&mut self.state.sessions).retain(|_, session| session.agent != row.id);
        put(&mut self.state.evicted_agents, row.id, row.clone());
        Ok(())
    }

    async fn insert_sessions(&mut self, rows: &[SessionRow]) -> Result<()> {
        for row in rows {
            put(&mut self.state.sessions, row.id, row.clone());
        }
        Ok(())
    }

    async fn lock_sessions(&mut self, ids: &[SessionId]) -> Result<Vec<SessionRow>> {
        Ok(rows(&self.state.sessions, &sorted(ids)))
    }

    async fn lock_sessions_of(&mut self, agents: &[AgentId]) -> Result<Vec<SessionRow>> {
        let open = self.state.sessions.values().filter(|row| row.open);
        Ok(open.filter(|row| agents.contains(&row.agent)).map(|row| (**row).clone()).collect())
    }

    async fn close_sessions(&mut self, ids: &[SessionId]) -> Result<()> {
        for session in rows(&self.state.sessions, ids) {
            put(&mut self.state.sessions, session.id, SessionRow { open: false, ..session });
        }
        Ok(())
    }

    async fn close_silent_session(&mut self, id: SessionId, observed: i64) -> Result<bool> {
        let session = row(&self.state.sessions, &id);
        match session.filter(|row| row.open && row.beat == observed) {
            Some(session) => self.close_sessions(&[session.id]).await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn insert_token(&mut self, row: &TokenRow) -> Result<()> {
        if self.state.tokens.values().any(|other| other.name == row.name) {
            return Err(Error::Exists { what: "token", name: row.name.clone() });
        }
        put(&mut self.state.tokens, row.id, row.clone());
        Ok(())
    }

    async fn lock_token(&mut self, id: TokenId) -> Result<Option<TokenRow>> {
        Ok(row(&self.state.tokens, &id))
    }

    async fn save_token(&mut self, row: &TokenRow) -> Result<()> {
        put(&mut self.state.tokens, row.id, row.clone());
        Ok(())
    }

    async fn delete_token(&mut self, id: TokenId) -> Result<bool> {
        Ok(Arc::make_mut(&mut self.state.tokens).remove(&id).is_some())
    }

    async fn touch_tokens(&mut self, used: &[(TokenId, Millis)]) -> Result<()> {
        for (id, at) in used {
            if let Some(token) = row(&self.state.tokens, id)
                && token.last_used_at < Some(*at)
            {
                put(&mut self.state.tokens, *id, TokenRow { last_used_at: Some(*at), ..token });
            }
        }
        Ok(())
    }

    async fn append_audit(&mut self, row: &AuditRow) -> Result<i64> {
        let last = self.state.audit.last_key_value().map_or(0, |(number, _)| *number);
        let number = last + 1;
        put(&mut self.state.audit, number, AuditRow { number, ..row.clone() });
        Ok(number)
    }

    async fn insert_secrets(&mut self, rows: &[SecretRow]) -> Result<()> {
        secrets::insert(&mut self.state, rows)
    }

    async fn lock_secrets(
        &mut self,
        project: ProjectId,
        build: Option<BuildId>,
        names: &[String],
    ) -> Result<Vec<SecretRow>> {
        Ok(secrets::current(&self.state, project, build, names))
    }

    async fn count_secrets(&mut self, project: ProjectId) -> Result<u64> {
        Ok(secrets::of_project(&self.state, project).len() as u64)
    }

    async fn save_sealed(&mut self, rows: &[SecretRow]) -> Result<()> {
        secrets::save_sealed(&mut self.state, rows);
        Ok(())
    }

    async fn end_secrets(&mut self, ids: &[SecretId], at: Millis) -> Result<()> {
        secrets::end(&mut self.state, at, |row| ids.contains(&row.id));
        Ok(())
    }

    async fn end_secrets_of_builds(&mut self, builds: &[BuildId], at: Millis) -> Result<()> {
        let of = |row: &SecretRow| row.build.is_some_and(|build| builds.contains(&build));
        secrets::end(&mut self.state, at, of);
        Ok(())
    }

    async fn delete_ended_secrets(&mut self) -> Result<u64> {
        Ok(secrets::delete_ended(&mut self.state))
    }

    async fn insert_grants(&mut self, rows: &[GrantRow]) -> Result<()> {
        secrets::grant(&mut self.state, rows);
        Ok(())
    }

    async fn granted(&mut self, leases: &[LeaseId]) -> Result<Vec<(LeaseId, SecretRow)>> {
        Ok(secrets::granted(&self.state, leases))
    }

    async fn delete_grants(&mut self, leases: &[LeaseId]) -> Result<()> {
        secrets::delete_grants(&mut self.state, leases);
        Ok(())
    }

    async fn insert_authority(&mut self, row: &AuthorityRow) -> Result<()> {
        if self.state.authorities.contains_key(&row.generation) {
            return Err(Error::Exists { what: "authority", name: row.generation.to_string() });
        }
        put(&mut self.state.authorities, row.generation, row.clone());
        Ok(())
    }

    async fn end_certificates(&mut self, at: Millis) -> Result<()> {
        for row in all(&self.state.agents) {
            let mut row = row;
            if let Some(certificate) = &mut row.certificate {
                certificate.ends_at = certificate.ends_at.min(at);
                put(&mut self.state.agents, row.id, row);
            }
        }
        Ok(())
    }

    async fn save_authority(&mut self, row: &AuthorityRow) -> Result<()> {
        put(&mut self.state.authorities, row.generation, row.clone());
        Ok(())
    }
}
