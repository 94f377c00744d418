//! Reads of committed rows. Each is a statement of its own; on SQLite they never wait for the writer.

use std::collections::BTreeMap;

use async_trait::async_trait;
use kiln_core::{
    Millis,
    agent::{Admission, Load},
    event::Record,
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId, SessionId, TokenId},
    schedule::Class,
    spec::JobSpec,
};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder};
use uuid::Uuid;

use super::{
    super::{
        AgentRow, ArtifactRow, AuditFilter, AuditRow, AuthorityRow, BuildFilter, BuildRow, Census,
        EvictedAgentRow, GroupRow, JobRow, LeaseRow, ProjectRow, QueueRow, Result, SecretRow,
        SessionRow, Store, TokenRow, Tx,
    },
    Sql, agent, artifact, audit, authority, build, census, class, event, evicted_agent, expire,
    group, job, job_spec, lease, migrate, need, project, queue, secret, secret_grant, session, set,
    sweep, token,
};

#[async_trait]
impl Store for Sql {
    fn writes_side_by_side(&self) -> bool {
        self.queue.is_none()
    }

    async fn begin(&self) -> Result<Box<dyn Tx>> {
        Ok(Box::new(self.open().await?))
    }

    async fn schema(&self) -> Result<String> {
        migrate::newest(&self.reader).await
    }

    async fn project(&self, name: &str) -> Result<Option<ProjectRow>> {
        let select = project::Entity::find().filter(project::Column::Name.eq(name));
        set::one(&self.reader, select, "read a project").await
    }

    async fn projects(&self) -> Result<Vec<ProjectRow>> {
        let select = project::Entity::find();
        let mut rows: Vec<ProjectRow> = set::rows(&self.reader, select, "list projects").await?;
        // Here, and not in the statement: the order of texts is each database's own.
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(rows)
    }

    async fn build(&self, id: BuildId) -> Result<Option<BuildRow>> {
        set::one(&self.reader, build::Entity::find_by_id(id.uuid()), "read a build").await
    }

    async fn builds(
        &self,
        filter: &BuildFilter,
        after: Option<(Millis, BuildId)>,
        limit: u32,
    ) -> Result<Vec<BuildRow>> {
        build::page(&self.reader, filter, after, limit).await
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRow>> {
        set::one(&self.reader, job::Entity::find_by_id(id.uuid()), "read a job").await
    }

    async fn jobs_of(&self, build: BuildId) -> Result<Vec<JobRow>> {
        job::of(&self.reader, build).await
    }

    async fn needs_of(&self, build: BuildId) -> Result<Vec<(JobId, JobId, bool)>> {
        need::of(&self.reader, build).await
    }

    async fn needed_by(&self, jobs: &[JobId]) -> Result<Vec<(JobId, JobRow, bool)>> {
        need::needed_by(&self.reader, jobs).await
    }

    async fn spec(&self, job: JobId) -> Result<Option<JobSpec>> {
        Ok(self.specs(&[job]).await?.pop().map(|(_, spec)| spec))
    }

    async fn specs(&self, jobs: &[JobId]) -> Result<Vec<(JobId, JobSpec)>> {
        let ids = jobs.iter().map(|id| id.uuid());
        let select = job_spec::Entity::find();
        set::among(&self.reader, select, job_spec::Column::Job, ids, "read specifications").await
    }

    async fn class(&self, id: ClassId) -> Result<Option<Class>> {
        let select = class::Entity::find_by_id(id.uuid());
        let found: Option<(ClassId, Class)> =
            set::one(&self.reader, select, "read a class").await?;
        Ok(found.map(|(_, class)| class))
    }

    async fn waiting_classes(&self) -> Result<Vec<ClassId>> {
        Ok(queue::waiting_classes(&self.reader).await?.into_keys().collect())
    }

    async fn events(&self, build: BuildId, after: i64, limit: u32) -> Result<Vec<Record>> {
        event::after(&self.reader, build, after, limit).await
    }

    async fn lease(&self, id: LeaseId) -> Result<Option<LeaseRow>> {
        set::one(&self.reader, lease::Entity::find_by_id(id.uuid()), "read a lease").await
    }

    async fn leases_of_job(&self, job: JobId) -> Result<Vec<LeaseRow>> {
        lease::of_job(&self.reader, job).await
    }

    async fn ended_builds(&self, before: Millis, limit: u32) -> Result<Vec<BuildId>> {
        expire::ended_builds(&self.reader, before, limit).await
    }

    async fn leases_of_build(&self, build: BuildId) -> Result<Vec<LeaseId>> {
        expire::leases_of(&self.reader, build).await
    }

    async fn open_leases(&self, agents: Option<&[AgentId]>) -> Result<Vec<LeaseRow>> {
        lease::open(&self.reader, agents).await
    }

    async fn artifacts_of(&self, jobs: &[JobId]) -> Result<Vec<ArtifactRow>> {
        artifact::of(&self.reader, jobs).await
    }

    async fn agents(&self) -> Result<Vec<AgentRow>> {
        let select = agent::Entity::find();
        let mut rows: Vec<AgentRow> = set::rows(&self.reader, select, "list agents").await?;
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(rows)
    }

    async fn agent(&self, id: AgentId) -> Result<Option<AgentRow>> {
        set::one(&self.reader, agent::Entity::find_by_id(id.uuid()), "read an agent").await
    }

    async fn agents_of(&self, ids: &[AgentId]) -> Result<Vec<AgentRow>> {
        let (select, ids) = (agent::Entity::find(), ids.iter().map(|id| id.uuid()));
        set::among(&self.reader, select, agent::Column::Id, ids, "read agents").await
    }

    async fn admissions(&self, agents: Option<&[AgentId]>) -> Result<Vec<(AgentId, Admission)>> {
        agent::admissions(&self.reader, agents).await
    }

    async fn evicted_agent(&self, id: AgentId) -> Result<Option<EvictedAgentRow>> {
        let select = evicted_agent::Entity::find_by_id(id.uuid());
        set::one(&self.reader, select, "read an evicted agent").await
    }

    async fn sessions(&self) -> Result<Vec<SessionRow>> {
        session::all_open(&self.reader).await
    }

    async fn beat(&self, beats: &[(SessionId, Load)], at: Millis) -> Result<Vec<SessionId>> {
        if beats.is_empty() {
            return Ok(vec![]);
        }
        let mut loads: BTreeMap<SessionId, Load> = beats.iter().copied().collect();
        // Two transactions: a Hello locks the agent first and then its sessions, the other way round.
        let tx = self.open().await?;
        let ids: Vec<SessionId> = loads.keys().copied().collect();
        let raised = session::beat(&*tx, &ids).await?;
        tx.finish().await?;
        let loads: BTreeMap<AgentId, Load> = raised
            .iter()
            .filter_map(|(session, agent)| Some((*agent, loads.remove(session)?)))
            .collect();
        if !loads.is_empty() {
            let tx = self.open().await?;
            session::save_loads(&*tx, &loads.into_iter().collect::<Vec<_>>(), at).await?;
            tx.finish().await?;
        }
        Ok(raised.into_iter().map(|(session, _)| session).collect())
    }

    async fn tokens(&self) -> Result<Vec<TokenRow>> {
        let select = token::Entity::find().order_by_asc(token::Column::Id);
        set::rows(&self.reader, select, "list tokens").await
    }

    async fn token(&self, id: TokenId) -> Result<Option<TokenRow>> {
        set::one(&self.reader, token::Entity::find_by_id(id.uuid()), "read a token").await
    }

    async fn audit(
        &self,
        filter: &AuditFilter,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AuditRow>> {
        audit::page(&self.reader, filter, before, limit).await
    }

    async fn secrets(&self, project: ProjectId) -> Result<Vec<SecretRow>> {
        secret::of_project(&self.reader, project).await
    }

    async fn secret_keys(&self) -> Result<Vec<String>> {
        let mut keys = secret::keys(&self.reader).await?;
        keys.extend(self.authorities().await?.into_iter().map(|row| row.key));
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }

    async fn secrets_of_other_keys(&self, key: &str, limit: u32) -> Result<Vec<SecretRow>> {
        secret::of_other_keys(&self.reader, key, limit).await
    }

    async fn done_builds_with_secrets(&self, limit: u32) -> Result<Vec<BuildId>> {
        secret::done_builds(&self.reader, limit).await
    }

    async fn granted(&self, leases: &[LeaseId]) -> Result<Vec<(LeaseId, SecretRow)>> {
        secret_grant::values(&self.reader, leases).await
    }

    async fn ended_leases_with_secrets(
        &self,
        after: Option<LeaseId>,
        limit: u32,
    ) -> Result<Vec<LeaseId>> {
        secret_grant::of_ended_leases(&self.reader, after, limit).await
    }

    async fn authorities(&self) -> Result<Vec<AuthorityRow>> {
        authority::all(&self.reader).await
    }

    async fn queue(&self) -> Result<Vec<QueueRow>> {
        queue::by_project(&self.reader).await
    }

    async fn census(&self, now: Millis) -> Result<Census> {
        census::take(&self.reader, now).await
    }

    async fn oldest_queued(&self, limit: u32) -> Result<Vec<JobRow>> {
        queue::oldest(&self.reader, limit).await
    }

    async fn ahead_of(&self, job: &JobRow) -> Result<u32> {
        queue::ahead_of(&self.reader, job).await
    }

    async fn members(&self, group: Uuid) -> Result<Vec<JobRow>> {
        job::members(&self.reader, group).await
    }

    async fn group(&self, id: Uuid) -> Result<Option<GroupRow>> {
        set::one(&self.reader, group::Entity::find_by_id(id), "read a group").await
    }

    async fn overdue(&self, now: Millis, limit: u32) -> Result<Vec<(BuildId, JobId)>> {
        queue::overdue(&self.reader, now, limit).await
    }

    async fn next_not_before(&self, now: Millis) -> Result<Option<Millis>> {
        queue::next_not_before(&self.reader, now).await
    }

    async fn inconsistent(&self, limit: u32) -> Result<Vec<BuildId>> {
        sweep::inconsistent(&self.reader, limit).await
    }
}
