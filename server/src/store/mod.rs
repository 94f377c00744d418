//! The rows: the only place that knows a database. Core types come in and go out.
//!
//! [`Store`] reads and begins transactions, [`Tx`] is one write transaction. Both work on sets, so that a group of
//! transitions costs as many statements as one. Three stores pass one suite of tests: SQLite, Postgres (`sql`) and
//! the memory store of the simulation (`memory`).
//!
//! Order of locks in every transaction: session, builds by id, groups by id, projects by id, head of the audit log.

mod audit;
pub mod jobs;
pub mod memory;
pub mod rows;
pub mod sql;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use async_trait::async_trait;
use kiln_core::{
    Millis,
    agent::Admission,
    event::Record,
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId, SecretId, SessionId, TokenId},
    schedule::{Candidate, Class},
    spec::JobSpec,
};
use uuid::Uuid;

pub use audit::*;
pub use rows::*;

/// Why the database did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A row was changed by someone else since it was read: load it again.
    #[error("the row was changed meanwhile")]
    Conflict,
    /// A unique name is taken.
    #[error("{what} {name:?} exists already")]
    Exists { what: &'static str, name: String },
    /// A row holds what this version can't read.
    #[error("table {table} holds an unreadable value in {column}: {value}")]
    Corrupt { table: &'static str, column: &'static str, value: String },
    /// The database failed; the same call may work later.
    #[error("the database failed while it was asked to {action}")]
    Database {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Open leases by backend.
pub type Busy = BTreeMap<String, u32>;

/// Projects that one claim looks at: enough for fairness, few enough for a claim that costs the same however many wait.
pub const PROJECTS_OF_A_CLAIM: usize = 16;

/// Reads, and the beginning of a write. A read sees committed rows only.
#[async_trait]
pub trait Store: Debug + Send + Sync {
    /// Write transactions go on beside each other, and wait for each other's rows only.
    fn writes_side_by_side(&self) -> bool;
    /// Begins a write transaction (IMMEDIATE on SQLite). Dropped without commit, it changes nothing.
    async fn begin(&self) -> Result<Box<dyn Tx>>;

    /// Name of the newest migration that was applied.
    async fn schema(&self) -> Result<String>;

    async fn project(&self, name: &str) -> Result<Option<ProjectRow>>;
    /// All by name.
    async fn projects(&self) -> Result<Vec<ProjectRow>>;

    async fn build(&self, id: BuildId) -> Result<Option<BuildRow>>;
    /// A page of at most `limit` builds behind `after` (creation, id) in the filter's order.
    async fn builds(
        &self,
        filter: &BuildFilter,
        after: Option<(Millis, BuildId)>,
        limit: u32,
    ) -> Result<Vec<BuildRow>>;
    async fn job(&self, id: JobId) -> Result<Option<JobRow>>;
    /// All jobs of a build by index.
    async fn jobs_of(&self, build: BuildId) -> Result<Vec<JobRow>>;
    /// Needed jobs of each job of a build, and whether their artifacts are placed.
    async fn needs_of(&self, build: BuildId) -> Result<Vec<(JobId, JobId, bool)>>;
    /// What each of these jobs needs: (job, needed job, whether its artifacts are placed), by job and index of the needed.
    async fn needed_by(&self, jobs: &[JobId]) -> Result<Vec<(JobId, JobRow, bool)>>;
    async fn spec(&self, job: JobId) -> Result<Option<JobSpec>>;
    /// Specifications of many jobs, in any order.
    async fn specs(&self, jobs: &[JobId]) -> Result<Vec<(JobId, JobSpec)>>;
    async fn class(&self, id: ClassId) -> Result<Option<Class>>;
    /// Ids of the classes that have claimable jobs, as committed.
    async fn waiting_classes(&self) -> Result<Vec<ClassId>>;
    /// Events with a number above `after`, in order.
    async fn events(&self, build: BuildId, after: i64, limit: u32) -> Result<Vec<Record>>;

    async fn lease(&self, id: LeaseId) -> Result<Option<LeaseRow>>;
    async fn leases_of_job(&self, job: JobId) -> Result<Vec<LeaseRow>>;
    /// Open leases of some agents, or of all.
    async fn open_leases(&self, agents: Option<&[AgentId]>) -> Result<Vec<LeaseRow>>;
    /// Artifacts of the jobs, by job and name.
    async fn artifacts_of(&self, jobs: &[JobId]) -> Result<Vec<ArtifactRow>>;

    /// All by name.
    async fn agents(&self) -> Result<Vec<AgentRow>>;
    async fn agent(&self, id: AgentId) -> Result<Option<AgentRow>>;
    /// Those of the agents that exist, by id.
    async fn agents_of(&self, ids: &[AgentId]) -> Result<Vec<AgentRow>>;
    /// Whether someone keeps agents from taking jobs: those of these that exist, or all.
    async fn admissions(&self, agents: Option<&[AgentId]>) -> Result<Vec<(AgentId, Admission)>>;
    /// Who had this id until it was evicted.
    async fn evicted_agent(&self, id: AgentId) -> Result<Option<EvictedAgentRow>>;
    /// Open sessions.
    async fn sessions(&self) -> Result<Vec<SessionRow>>;
    /// Raises `beat` of each session that is open and stores the agent's load; returns the sessions that were open.
    async fn beat(
        &self,
        beats: &[(SessionId, kiln_core::agent::Load)],
        at: Millis,
    ) -> Result<Vec<SessionId>>;

    async fn tokens(&self) -> Result<Vec<TokenRow>>;
    async fn token(&self, id: TokenId) -> Result<Option<TokenRow>>;

    /// Records of the audit log that match, the newest first: at most `limit` of those numbered below `before`.
    async fn audit(
        &self,
        filter: &AuditFilter,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AuditRow>>;

    /// Current secrets of a project by name, without their values, nor those of its builds.
    async fn secrets(&self, project: ProjectId) -> Result<Vec<SecretRow>>;
    /// Ids of all keys that encrypt a value, or the signing key of an authority.
    async fn secret_keys(&self) -> Result<Vec<String>>;
    /// Values that another key encrypts, the replaced ones included.
    async fn secrets_of_other_keys(&self, key: &str, limit: u32) -> Result<Vec<SecretRow>>;
    /// Builds that are done and have current secrets.
    async fn done_builds_with_secrets(&self, limit: u32) -> Result<Vec<BuildId>>;
    /// The values that leases were given, by lease and name.
    async fn granted(&self, leases: &[LeaseId]) -> Result<Vec<(LeaseId, SecretRow)>>;
    /// Leases behind `after` that were given secrets and hold their job no more, by id.
    async fn ended_leases_with_secrets(
        &self,
        after: Option<LeaseId>,
        limit: u32,
    ) -> Result<Vec<LeaseId>>;

    /// All authorities, the newest first.
    async fn authorities(&self) -> Result<Vec<AuthorityRow>>;

    async fn queue(&self) -> Result<Vec<QueueRow>>;
    /// Counts of what waits and of what is open. A queued job waits for `Slot`, `Backoff` or `Group` here.
    async fn census(&self, now: Millis) -> Result<Census>;
    /// Queued jobs, the oldest first.
    async fn oldest_queued(&self, limit: u32) -> Result<Vec<JobRow>>;
    /// Jobs of a class that are claimable and would be taken before this one.
    async fn ahead_of(&self, job: &JobRow) -> Result<u32>;
    /// Queued or open jobs of a group by job id.
    async fn members(&self, group: Uuid) -> Result<Vec<JobRow>>;
    async fn group(&self, id: Uuid) -> Result<Option<GroupRow>>;
    /// Queued jobs whose queue timeout is over at `now`.
    async fn overdue(&self, now: Millis, limit: u32) -> Result<Vec<(BuildId, JobId)>>;
    /// The earliest `not_before` after `now` of a claimable job.
    async fn next_not_before(&self, now: Millis) -> Result<Option<Millis>>;
    /// Builds whose counts or whose jobs' open needs differ from what their jobs say. Slow: for the sweep.
    async fn inconsistent(&self, limit: u32) -> Result<Vec<BuildId>>;
    /// Builds that ended before this moment and have no open lease, the oldest first.
    async fn ended_builds(&self, before: Millis, limit: u32) -> Result<Vec<BuildId>>;
    /// All leases of a build's jobs.
    async fn leases_of_build(&self, build: BuildId) -> Result<Vec<LeaseId>>;
}

/// One write transaction. Nothing but the database is awaited while one is open.
#[async_trait]
pub trait Tx: Send {
    async fn commit(self: Box<Self>) -> Result<()>;

    /// Errors with `Exists` where the name is taken; the transaction must then be dropped.
    async fn insert_project(&mut self, row: &ProjectRow) -> Result<()>;
    /// Locks and returns them by id.
    async fn lock_projects(&mut self, ids: &[ProjectId]) -> Result<Vec<ProjectRow>>;
    async fn save_projects(&mut self, rows: &[ProjectRow]) -> Result<()>;

    /// Inserts what has no (project, key) twin and returns the ids that were inserted.
    async fn insert_builds(&mut self, rows: &[BuildRow]) -> Result<Vec<BuildId>>;
    async fn builds_by_key(&mut self, keys: &[(ProjectId, String)]) -> Result<Vec<BuildRow>>;
    /// Locks (FOR UPDATE) and returns them by id.
    async fn lock_builds(&mut self, ids: &[BuildId]) -> Result<Vec<BuildRow>>;
    /// Saves counts, last event and end, and the state folded from the counts.
    async fn save_builds(&mut self, rows: &[BuildRow]) -> Result<()>;

    /// Ids of the classes in the order given, made where they are new.
    async fn ensure_classes(&mut self, classes: &[(ClassId, Class)]) -> Result<Vec<ClassId>>;
    /// Groups by (project, name), made where they are new; their limit becomes the given one. Locked, in the
    /// order given.
    async fn ensure_groups(&mut self, groups: &[GroupRow]) -> Result<Vec<GroupRow>>;
    async fn lock_groups(&mut self, ids: &[Uuid]) -> Result<Vec<GroupRow>>;
    /// Queued, leased or running jobs of a group, by job id: all open ones, and the first `queued` queued ones.
    async fn group_members(&mut self, group: Uuid, queued: u32) -> Result<Vec<JobRow>>;

    async fn insert_jobs(&mut self, jobs: &[NewJob]) -> Result<()>;
    async fn jobs(&mut self, ids: &[JobId]) -> Result<Vec<JobRow>>;
    async fn jobs_of(&mut self, build: BuildId) -> Result<Vec<JobRow>>;
    /// Jobs that need one of the given: (needed, dependent).
    async fn dependents(&mut self, needed: &[JobId]) -> Result<Vec<(JobId, JobRow)>>;
    /// Edges of a build: (job, needed).
    async fn edges(&mut self, build: BuildId) -> Result<Vec<(JobId, JobId)>>;
    /// Saves what a transition changes, where the version is still the row's, and raises it; returns the others.
    async fn save_jobs(&mut self, rows: &[JobRow]) -> Result<Vec<JobId>>;
    /// A number that is taken is a `Conflict`.
    async fn append_events(&mut self, events: &[Record]) -> Result<()>;

    async fn insert_leases(&mut self, rows: &[LeaseRow]) -> Result<()>;
    async fn leases(&mut self, ids: &[LeaseId]) -> Result<Vec<LeaseRow>>;
    /// Open leases of some agents.
    async fn open_leases(&mut self, agents: &[AgentId]) -> Result<Vec<LeaseRow>>;
    /// How many leases of each backend these agents hold open; who holds none is missing.
    async fn busy(&mut self, agents: &[AgentId]) -> Result<BTreeMap<AgentId, Busy>>;
    async fn save_leases(&mut self, rows: &[LeaseRow]) -> Result<()>;
    /// Replaces the artifacts of each job named.
    async fn put_artifacts(&mut self, jobs: &[JobId], rows: &[ArtifactRow]) -> Result<()>;

    /// Claimable jobs of these classes that are due (`Job::is_due`), of the 16 projects of least weighted use that have
    /// any and are neither paused nor at their limit, the first `each` of each project by priority and age. With their
    /// affinity's last agent in `preferred`, whether it has room or not.
    async fn candidates(
        &mut self,
        classes: &[ClassId],
        each: u32,
        now: Millis,
    ) -> Result<Vec<(Candidate, BuildId)>>;
    /// Remembers which agent has the caches of these affinities warm.
    async fn save_affinities(&mut self, rows: &[(String, AgentId, Millis)]) -> Result<()>;
    /// All classes that have claimable jobs.
    async fn waiting_classes(&mut self) -> Result<BTreeMap<ClassId, Class>>;

    /// Errors with `Exists` where the name is taken; the transaction must then be dropped.
    async fn insert_agent(&mut self, row: &AgentRow) -> Result<()>;
    /// Locks and returns them by id.
    async fn lock_agents(&mut self, ids: &[AgentId]) -> Result<Vec<AgentRow>>;
    /// Saves all but their names.
    async fn save_agents(&mut self, rows: &[AgentRow]) -> Result<()>;
    /// Removes an agent and notes who it was. Its sessions go with it; leases and jobs keep its id.
    async fn evict_agent(&mut self, row: &EvictedAgentRow) -> Result<()>;
    async fn insert_sessions(&mut self, rows: &[SessionRow]) -> Result<()>;
    /// Locks and returns them by id.
    async fn lock_sessions(&mut self, ids: &[SessionId]) -> Result<Vec<SessionRow>>;
    /// Open sessions of some agents, locked.
    async fn lock_sessions_of(&mut self, agents: &[AgentId]) -> Result<Vec<SessionRow>>;
    async fn close_sessions(&mut self, ids: &[SessionId]) -> Result<()>;
    /// Closes it where it is open and its beat is the observed one; says whether it did.
    async fn close_silent_session(&mut self, id: SessionId, observed_beat: i64) -> Result<bool>;

    async fn insert_token(&mut self, row: &TokenRow) -> Result<()>;
    async fn lock_token(&mut self, id: TokenId) -> Result<Option<TokenRow>>;
    async fn save_token(&mut self, row: &TokenRow) -> Result<()>;
    async fn delete_token(&mut self, id: TokenId) -> Result<bool>;
    /// Remembers when tokens were used last; a later moment stays.
    async fn touch_tokens(&mut self, used: &[(TokenId, Millis)]) -> Result<()>;

    /// Deletes a build, with its jobs, leases, events, artifacts and secrets, where it ended before this moment and has no
    /// open lease; says whether it did. Its logs must be gone.
    async fn delete_build(&mut self, id: BuildId, before: Millis) -> Result<bool>;

    /// Deletes the oldest records of the audit log that are older than this moment, but not the last; returns how many.
    async fn delete_audit(&mut self, before: Millis, limit: u32) -> Result<u64>;
    /// Appends a record under the next number, which it returns. The last lock of a transaction.
    async fn append_audit(&mut self, row: &AuditRow) -> Result<i64>;

    /// Errors with `Exists` where there is a current one of that name; the transaction must then be dropped.
    async fn insert_secrets(&mut self, rows: &[SecretRow]) -> Result<()>;
    /// Current secrets of these names, locked: the project's, and those of the build.
    async fn lock_secrets(
        &mut self,
        project: ProjectId,
        build: Option<BuildId>,
        names: &[String],
    ) -> Result<Vec<SecretRow>>;
    /// How many current ones a project has, those of its builds not counted.
    async fn count_secrets(&mut self, project: ProjectId) -> Result<u64>;
    /// Saves key and sealed value.
    async fn save_sealed(&mut self, rows: &[SecretRow]) -> Result<()>;
    async fn end_secrets(&mut self, ids: &[SecretId], at: Millis) -> Result<()>;
    async fn end_secrets_of_builds(&mut self, builds: &[BuildId], at: Millis) -> Result<()>;
    /// Deletes those that have ended and no lease was given; returns how many.
    async fn delete_ended_secrets(&mut self) -> Result<u64>;
    /// A lease that was given a secret of that name keeps it.
    async fn insert_grants(&mut self, rows: &[GrantRow]) -> Result<()>;
    /// As the read of the same name.
    async fn granted(&mut self, leases: &[LeaseId]) -> Result<Vec<(LeaseId, SecretRow)>>;
    async fn delete_grants(&mut self, leases: &[LeaseId]) -> Result<()>;

    /// Errors with `Exists` where the generation is taken; the transaction must then be dropped.
    async fn insert_authority(&mut self, row: &AuthorityRow) -> Result<()>;
    /// No certificate of an agent ends later than this.
    async fn end_certificates(&mut self, at: Millis) -> Result<()>;
    /// Saves what changes: key, sealed key, and until when it is trusted.
    async fn save_authority(&mut self, row: &AuthorityRow) -> Result<()>;
}

/// A store that many share.
pub type SharedStore = Arc<dyn Store>;
