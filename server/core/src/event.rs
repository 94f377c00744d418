//! The record of what changed: appended in the transaction of the change, watched and reported afterwards.

use serde::{Deserialize, Serialize};

use crate::{
    Millis,
    build::BuildState,
    id::{AgentId, BuildId, JobId, LeaseId},
    job::{Job, Status},
    outcome::Outcome,
};

/// An event of a build. Numbers begin at 1 and have no gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub build: BuildId,
    pub number: i64,
    pub at: Millis,
    pub change: Change,
}

/// What changed; the JSON text of the event's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Change {
    /// The build was accepted.
    Submitted { jobs: u32 },
    /// A job changed.
    Job(JobChange),
    /// The build's state changed.
    Build { state: BuildState },
}

/// A job after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobChange {
    pub job: JobId,
    pub name: String,
    pub status: Status,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelling: bool,
    pub round: u32,
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// The outcome of the job, or of an attempt that is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why, where it is not the plain next step.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl JobChange {
    /// What to record of a job that has just changed.
    pub fn of(job: &Job, name: &str) -> Self {
        Self {
            job: job.id,
            name: name.to_owned(),
            status: job.status(),
            cancelling: job.cancelling(),
            round: job.round,
            attempt: job.attempt,
            lease: job.lease,
            agent: None,
            outcome: match &job.state {
                crate::job::State::Done(outcome) => Some(outcome.clone()),
                _ => None,
            },
            reason: String::new(),
        }
    }
}
