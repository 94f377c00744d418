//! The write transaction: what locks here locks rows on Postgres; on SQLite the transaction is the lock.

use std::collections::BTreeMap;

use async_trait::async_trait;
use kiln_core::{
    Millis,
    event::Record,
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId, SecretId, SessionId, TokenId},
    schedule::{Candidate, Class},
};
use sea_orm::{EntityTrait, QuerySelect, sea_query::LockType};
use uuid::Uuid;

use super::{
    super::{
        AgentRow, ArtifactRow, AuditRow, AuthorityRow, BuildRow, Busy, EvictedAgentRow, GrantRow,
        GroupRow, JobRow, LeaseRow, NewJob, ProjectRow, Result, SecretRow, SessionRow, TokenRow,
        Tx,
    },
    affinity, agent, artifact, audit, authority, build, class, event, evicted_agent, expire, group,
    job, lease, need, project, queue, secret, secret_grant, session, set, token,
    tx::SqlTx,
};

/// Strong enough among writers, and it lets others insert rows that refer to the locked one.
const LOCK: LockType = LockType::NoKeyUpdate;

#[async_trait]
impl Tx for SqlTx {
    async fn commit(self: Box<Self>) -> Result<()> {
        self.finish().await
    }

    async fn insert_project(&mut self, row: &ProjectRow) -> Result<()> {
        project::insert(&**self, row).await
    }

    async fn lock_projects(&mut self, ids: &[ProjectId]) -> Result<Vec<ProjectRow>> {
        let select = project::Entity::find().lock(LOCK);
        let ids = ids.iter().map(|id| id.uuid());
        set::among(&**self, select, project::Column::Id, ids, "lock projects").await
    }

    async fn save_projects(&mut self, rows: &[ProjectRow]) -> Result<()> {
        project::save(&**self, rows).await
    }

    async fn insert_builds(&mut self, rows: &[BuildRow]) -> Result<Vec<BuildId>> {
        build::insert(&**self, rows).await
    }

    async fn builds_by_key(&mut self, keys: &[(ProjectId, String)]) -> Result<Vec<BuildRow>> {
        build::by_key(&**self, keys).await
    }

    async fn lock_builds(&mut self, ids: &[BuildId]) -> Result<Vec<BuildRow>> {
        let select = build::Entity::find().lock(LOCK);
        let ids = ids.iter().map(|id| id.uuid());
        set::among(&**self, select, build::Column::Id, ids, "lock builds").await
    }

    async fn delete_build(&mut self, id: BuildId, before: Millis) -> Result<bool> {
        if self.lock_builds(&[id]).await?.is_empty() {
            return Ok(false);
        }
        expire::delete_build(&**self, id, before).await
    }

    async fn delete_audit(&mut self, before: Millis, limit: u32) -> Result<u64> {
        expire::delete_audit(&**self, before, limit).await
    }

    async fn save_builds(&mut self, rows: &[BuildRow]) -> Result<()> {
        build::save(&**self, rows).await
    }

    async fn ensure_classes(&mut self, classes: &[(ClassId, Class)]) -> Result<Vec<ClassId>> {
        class::ensure(&**self, classes).await
    }

    async fn ensure_groups(&mut self, groups: &[GroupRow]) -> Result<Vec<GroupRow>> {
        group::ensure(&**self, groups).await
    }

    async fn lock_groups(&mut self, ids: &[Uuid]) -> Result<Vec<GroupRow>> {
        group::lock(&**self, ids).await
    }

    async fn group_members(&mut self, group: Uuid, queued: u32) -> Result<Vec<JobRow>> {
        job::first_members(&**self, group, queued).await
    }

    async fn insert_jobs(&mut self, jobs: &[NewJob]) -> Result<()> {
        job::insert(&**self, jobs).await
    }

    async fn jobs(&mut self, ids: &[JobId]) -> Result<Vec<JobRow>> {
        job::list(&**self, ids.iter().copied()).await
    }

    async fn jobs_of(&mut self, build: BuildId) -> Result<Vec<JobRow>> {
        job::of(&**self, build).await
    }

    async fn dependents(&mut self, needed: &[JobId]) -> Result<Vec<(JobId, JobRow)>> {
        need::dependents(&**self, needed).await
    }

    async fn edges(&mut self, build: BuildId) -> Result<Vec<(JobId, JobId)>> {
        let edges = need::of(&**self, build).await?;
        Ok(edges.into_iter().map(|(job, needed, _)| (job, needed)).collect())
    }

    async fn save_jobs(&mut self, rows: &[JobRow]) -> Result<Vec<JobId>> {
        job::save(&**self, rows).await
    }

    async fn append_events(&mut self, events: &[Record]) -> Result<()> {
        event::append(&**self, events).await
    }

    async fn insert_leases(&mut self, rows: &[LeaseRow]) -> Result<()> {
        lease::insert(&**self, rows).await
    }

    async fn leases(&mut self, ids: &[LeaseId]) -> Result<Vec<LeaseRow>> {
        let ids = ids.iter().map(|id| id.uuid());
        set::among(&**self, lease::Entity::find(), lease::Column::Id, ids, "read leases").await
    }

    async fn open_leases(&mut self, agents: &[AgentId]) -> Result<Vec<LeaseRow>> {
        lease::open(&**self, Some(agents)).await
    }

    async fn busy(&mut self, agents: &[AgentId]) -> Result<BTreeMap<AgentId, Busy>> {
        lease::busy(&**self, agents).await
    }

    async fn save_leases(&mut self, rows: &[LeaseRow]) -> Result<()> {
        lease::save(&**self, rows).await
    }

    async fn put_artifacts(&mut self, jobs: &[JobId], rows: &[ArtifactRow]) -> Result<()> {
        artifact::put(&**self, jobs, rows).await
    }

    async fn candidates(
        &mut self,
        classes: &[ClassId],
        each: u32,
        now: Millis,
    ) -> Result<Vec<(Candidate, BuildId)>> {
        queue::candidates(&**self, classes, each, now).await
    }

    async fn save_affinities(&mut self, rows: &[(String, AgentId, Millis)]) -> Result<()> {
        affinity::save(&**self, rows).await
    }

    async fn waiting_classes(&mut self) -> Result<BTreeMap<ClassId, Class>> {
        queue::waiting_classes(&**self).await
    }

    async fn insert_agent(&mut self, row: &AgentRow) -> Result<()> {
        agent::insert(&**self, row).await
    }

    async fn lock_agents(&mut self, ids: &[AgentId]) -> Result<Vec<AgentRow>> {
        let (select, ids) = (agent::Entity::find().lock(LOCK), ids.iter().map(|id| id.uuid()));
        set::among(&**self, select, agent::Column::Id, ids, "lock agents").await
    }

    async fn save_agents(&mut self, rows: &[AgentRow]) -> Result<()> {
        agent::save(&**self, rows).await
    }

    async fn evict_agent(&mut self, row: &EvictedAgentRow) -> Result<()> {
        agent::delete(&**self, row.id).await?;
        evicted_agent::insert(&**self, row).await
    }

    async fn insert_sessions(&mut self, rows: &[SessionRow]) -> Result<()> {
        session::insert(&**self, rows).await
    }

    async fn lock_sessions(&mut self, ids: &[SessionId]) -> Result<Vec<SessionRow>> {
        let (select, ids) = (session::Entity::find().lock(LOCK), ids.iter().map(|id| id.uuid()));
        set::among(&**self, select, session::Column::Id, ids, "lock sessions").await
    }

    async fn lock_sessions_of(&mut self, agents: &[AgentId]) -> Result<Vec<SessionRow>> {
        session::lock_open_of(&**self, agents).await
    }

    async fn close_sessions(&mut self, ids: &[SessionId]) -> Result<()> {
        session::close(&**self, ids).await
    }

    async fn close_silent_session(&mut self, id: SessionId, observed: i64) -> Result<bool> {
        session::close_silent(&**self, id, observed).await
    }

    async fn insert_token(&mut self, row: &TokenRow) -> Result<()> {
        token::insert(&**self, row).await
    }

    async fn lock_token(&mut self, id: TokenId) -> Result<Option<TokenRow>> {
        let select = token::Entity::find_by_id(id.uuid()).lock(LOCK);
        set::one(&**self, select, "lock a token").await
    }

    async fn save_token(&mut self, row: &TokenRow) -> Result<()> {
        token::save(&**self, row).await
    }

    async fn delete_token(&mut self, id: TokenId) -> Result<bool> {
        token::delete(&**self, id).await
    }

    async fn touch_tokens(&mut self, used: &[(TokenId, Millis)]) -> Result<()> {
        token::touch(&**self, used).await
    }

    async fn append_audit(&mut self, row: &AuditRow) -> Result<i64> {
        audit::append(&**self, row).await
    }

    async fn insert_secrets(&mut self, rows: &[SecretRow]) -> Result<()> {
        secret::insert(&**self, rows).await
    }

    async fn lock_secrets(
        &mut self,
        project: ProjectId,
        build: Option<BuildId>,
        names: &[String],
    ) -> Result<Vec<SecretRow>> {
        secret::lock(&**self, project, build, names, LOCK).await
    }

    async fn count_secrets(&mut self, project: ProjectId) -> Result<u64> {
        secret::count(&**self, project).await
    }

    async fn save_sealed(&mut self, rows: &[SecretRow]) -> Result<()> {
        secret::save_sealed(&**self, rows).await
    }

    async fn end_secrets(&mut self, ids: &[SecretId], at: Millis) -> Result<()> {
        let ids = ids.iter().map(|id| id.uuid());
        secret::end(&**self, secret::Column::Id, ids, at).await
    }

    async fn end_secrets_of_builds(&mut self, builds: &[BuildId], at: Millis) -> Result<()> {
        let ids = builds.iter().map(|id| id.uuid());
        secret::end(&**self, secret::Column::Build, ids, at).await
    }

    async fn delete_ended_secrets(&mut self) -> Result<u64> {
        secret::delete_ended(&**self).await
    }

    async fn insert_grants(&mut self, rows: &[GrantRow]) -> Result<()> {
        secret_grant::insert(&**self, rows).await
    }

    async fn granted(&mut self, leases: &[LeaseId]) -> Result<Vec<(LeaseId, SecretRow)>> {
        secret_grant::values(&**self, leases).await
    }

    async fn delete_grants(&mut self, leases: &[LeaseId]) -> Result<()> {
        secret_grant::delete(&**self, leases).await
    }

    async fn insert_authority(&mut self, row: &AuthorityRow) -> Result<()> {
        authority::insert(&**self, row).await
    }

    async fn end_certificates(&mut self, at: Millis) -> Result<()> {
        agent::end_certificates(&**self, at).await
    }

    async fn save_authority(&mut self, row: &AuthorityRow) -> Result<()> {
        authority::save(&**self, row).await
    }
}
