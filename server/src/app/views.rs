//! What the use cases show: rows joined for an edge, with the names of what they refer to.

use kiln_core::{
    Millis,
    agent::{Agent, Profile},
    id::{LeaseId, SessionId},
    schedule::{Reason, Verdict},
    session::Held,
};

/// What edges see of the rows; they never name `store` themselves.
pub use crate::store::{
    AgentRow, AuditFilter, AuditRow, AuthorityRow, BuildFilter, BuildRow, Error as StoreError,
    JobRow, ProjectRow, Role, SecretRow, TokenRow,
};

/// A build and the name of its project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildView {
    pub build: BuildRow,
    pub project: String,
}

/// A job, the names of what it needs and of its last agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    pub job: JobRow,
    pub needs: Vec<String>,
    pub agent: Option<String>,
}

/// An agent with what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentView {
    pub agent: Agent,
    pub leases: Vec<LeaseId>,
    pub seen_at: Millis,
}

/// Counts of a project's jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueView {
    pub project: String,
    pub queued: u32,
    pub running: u32,
    pub oldest: Option<Millis>,
}

/// Why a job waits, or how it ended. The lines of its log are added by the edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub job: JobView,
    pub summary: String,
    pub reasons: Vec<Reason>,
    pub agents: Vec<Verdict>,
}

/// What an agent says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub instance: String,
    pub epoch: i64,
    pub profile: Profile,
    pub journal: Vec<(LeaseId, Held)>,
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    pub session: SessionId,
    pub reconciled: kiln_core::session::Reconciled,
    pub draining: bool,
}
