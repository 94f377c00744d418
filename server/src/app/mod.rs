//! The use cases: the only place where rows and core meet. Edges call these and nothing below.

pub mod error;
pub mod views;

use std::time::Duration;

use crate::{
    clock::SharedClock,
    store::{AgentRow, BuildFilter, Role, SharedStore, TokenRow},
    wake::{Subscription, Topic, Wake},
};
use kiln_core::{
    Millis,
    agent::{Load, Profile},
    event::Record as EventRecord,
    id::{AgentId, BuildId, JobId, LeaseId, SessionId, TokenId},
    session::{Assignment, LeaseFacts, Record, Recorded},
    spec::BuildSpec,
};

pub use error::{Error, Result};
pub use views::*;

/// Durations of the session protocol.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two heartbeats of an agent.
    pub heartbeat: Duration,
    /// Silence after which an agent is given up.
    pub grace: Duration,
    /// Between two sweeps.
    pub sweep: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            grace: Duration::from_secs(60),
            sweep: Duration::from_secs(5),
        }
    }
}

/// What a caller asks to be built.
#[derive(Debug, Clone)]
pub struct Submit {
    pub project: String,
    pub key: Option<String>,
    pub spec: BuildSpec,
    pub submitter: String,
}

/// The use cases over a store, a wake and a clock. Cheap to clone.
#[derive(Debug, Clone)]
pub struct App {
    store: SharedStore,
    wake: std::sync::Arc<dyn Wake>,
    clock: SharedClock,
    timing: Timing,
}

#[expect(unused_variables, clippy::unused_async, clippy::todo, reason = "the app is being written")]
impl App {
    pub fn new(
        store: SharedStore,
        wake: std::sync::Arc<dyn Wake>,
        clock: SharedClock,
        timing: Timing,
    ) -> Self {
        Self { store, wake, clock, timing }
    }

    pub fn timing(&self) -> Timing {
        self.timing
    }

    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    pub fn subscribe(&self, topics: &[Topic]) -> Subscription {
        self.wake.subscribe(topics)
    }

    // ---- builds

    /// Checks a submission without storing it.
    pub async fn check(&self, submit: Submit) -> Result<()> {
        todo!()
    }

    /// Stores a build; `created` is false where the key named one with the same content.
    pub async fn submit(&self, submit: Submit) -> Result<(BuildView, bool)> {
        todo!()
    }

    pub async fn build(&self, id: BuildId) -> Result<BuildView> {
        todo!()
    }

    /// A build with its jobs by index.
    pub async fn build_with_jobs(&self, id: BuildId) -> Result<(BuildView, Vec<JobView>)> {
        todo!()
    }

    /// A page of builds, and where the next one begins. `project` in the filter is set by name.
    pub async fn builds(
        &self,
        project: Option<&str>,
        filter: BuildFilter,
        after: Option<(Millis, BuildId)>,
        limit: u32,
    ) -> Result<(Vec<BuildView>, Option<(Millis, BuildId)>)> {
        todo!()
    }

    pub async fn job(&self, id: JobId) -> Result<JobView> {
        todo!()
    }

    pub async fn events(&self, build: BuildId, after: i64, limit: u32) -> Result<Vec<EventRecord>> {
        todo!()
    }

    /// Cancels a build or one of its jobs; repeated, it changes nothing.
    pub async fn cancel(
        &self,
        build: BuildId,
        job: Option<JobId>,
        reason: &str,
    ) -> Result<BuildView> {
        todo!()
    }

    /// Opens a new round of the targets (job and the round seen; none: all unsuccessful) and their unsuccessful dependents.
    pub async fn retry(
        &self,
        build: BuildId,
        targets: Vec<(JobId, Option<u32>)>,
    ) -> Result<(BuildView, Vec<JobId>)> {
        todo!()
    }

    pub async fn explain(&self, job: JobId) -> Result<Explanation> {
        todo!()
    }

    // ---- projects

    pub async fn create_project(
        &self,
        name: &str,
        weight: Option<u32>,
        max_running: u32,
    ) -> Result<crate::store::ProjectRow> {
        todo!()
    }

    pub async fn project(&self, name: &str) -> Result<crate::store::ProjectRow> {
        todo!()
    }

    pub async fn projects(&self) -> Result<Vec<crate::store::ProjectRow>> {
        todo!()
    }

    pub async fn update_project(
        &self,
        name: &str,
        weight: Option<u32>,
        max_running: Option<u32>,
        paused: Option<bool>,
    ) -> Result<crate::store::ProjectRow> {
        todo!()
    }

    // ---- sessions of agents

    /// Opens a session: closes older ones and settles their leases in one transaction.
    pub async fn hello(&self, agent: AgentId, hello: Hello) -> Result<Welcome> {
        todo!()
    }

    /// Leases what the agent of this session has room for. Empty where nothing fits, or the session is closed.
    pub async fn claim(&self, session: SessionId) -> Result<Vec<Assignment>> {
        todo!()
    }

    /// Until something that this session could claim may be there: a wake, the end of a backoff or of a sticky wait, or the sweep.
    pub async fn claimable(&self, session: SessionId) {
        todo!()
    }

    /// Records what an agent said of a lease, grouped with what others say at the same moment.
    pub async fn record(&self, session: SessionId, record: Record) -> Result<Recorded> {
        todo!()
    }

    /// The heartbeat of a session, grouped with those of others; false where it is closed.
    pub async fn beat(&self, session: SessionId, load: Load) -> Result<bool> {
        todo!()
    }

    pub async fn update_profile(&self, agent: AgentId, profile: Profile) -> Result<()> {
        todo!()
    }

    /// What the rows say of an agent's open leases, and whether it drains.
    pub async fn facts(&self, agent: AgentId) -> Result<(Vec<LeaseFacts>, bool)> {
        todo!()
    }

    /// A lease as it is given to its agent, to be said again.
    pub async fn assignment(&self, lease: LeaseId) -> Result<Assignment> {
        todo!()
    }

    /// One round of the reaper: dead sessions, overdue jobs, ended pauses, differences between counts and jobs.
    /// It keeps what it observed from round to round itself.
    pub async fn sweep(&self) -> Result<()> {
        todo!()
    }

    // ---- agents and tokens

    pub async fn agents(&self) -> Result<Vec<AgentView>> {
        todo!()
    }

    pub async fn pause_agent(
        &self,
        name: &str,
        note: &str,
        duration: Option<Millis>,
    ) -> Result<AgentView> {
        todo!()
    }

    pub async fn resume_agent(&self, name: &str) -> Result<AgentView> {
        todo!()
    }

    pub async fn drain_agent(&self, name: &str) -> Result<AgentView> {
        todo!()
    }

    /// Removes an agent; returns how many leases were lost with it.
    pub async fn evict_agent(&self, name: &str) -> Result<u32> {
        todo!()
    }

    /// Turns an enroller token into an agent. `secret` is what the token's bearer presents.
    pub async fn enroll(
        &self,
        secret: &str,
        name: &str,
        credential_sha256: &[u8],
    ) -> Result<AgentId> {
        todo!()
    }

    /// The queue by project, and the oldest jobs that wait.
    pub async fn queue(&self) -> Result<(Vec<QueueView>, Vec<JobView>)> {
        todo!()
    }

    /// Makes a token; returns its secret, which is not stored.
    pub async fn create_token(
        &self,
        name: &str,
        role: Role,
        project: Option<&str>,
        duration: Option<Millis>,
    ) -> Result<(TokenRow, String)> {
        todo!()
    }

    /// Makes the first administrator's token with a secret chosen by the caller, where there is none of that name.
    pub async fn ensure_admin_token(&self, name: &str, secret: &str) -> Result<()> {
        todo!()
    }

    pub async fn tokens(&self) -> Result<Vec<TokenRow>> {
        todo!()
    }

    pub async fn revoke_token(&self, id: TokenId) -> Result<()> {
        todo!()
    }

    /// Who presents this bearer text: a token or an agent. Constant-time comparison of digests.
    pub async fn authenticate(&self, bearer: &str) -> Result<Principal> {
        todo!()
    }

    pub async fn agent(&self, id: AgentId) -> Result<AgentRow> {
        todo!()
    }
}
