//! States and events.

use kiln_core::{
    build::BuildState,
    event::{Change, JobChange, Record},
    job::Status,
};

use super::{Read, Reader, narrow};
use crate::v1;

/// The state of a job; unspecified is wrong.
pub fn job_status(field: &str, number: i32) -> Read<Status> {
    let mut reader = Reader::at(field);
    let status = reader.member("", number).and_then(|state| match state {
        v1::JobState::Unspecified => {
            reader.fail("", "must be set");
            None
        }
        v1::JobState::Blocked => Some(Status::Blocked),
        v1::JobState::Queued => Some(Status::Queued),
        v1::JobState::Leased => Some(Status::Leased),
        v1::JobState::Running => Some(Status::Running),
        v1::JobState::Succeeded => Some(Status::Succeeded),
        v1::JobState::Failed => Some(Status::Failed),
        v1::JobState::Cancelled => Some(Status::Cancelled),
    });
    reader.done(status)
}

impl From<Status> for v1::JobState {
    fn from(status: Status) -> Self {
        match status {
            Status::Blocked => Self::Blocked,
            Status::Queued => Self::Queued,
            Status::Leased => Self::Leased,
            Status::Running => Self::Running,
            Status::Succeeded => Self::Succeeded,
            Status::Failed => Self::Failed,
            Status::Cancelled => Self::Cancelled,
        }
    }
}

/// The state of a build; unspecified is wrong.
pub fn build_state(field: &str, number: i32) -> Read<BuildState> {
    let mut reader = Reader::at(field);
    let state = reader.member("", number).and_then(|state| match state {
        v1::BuildState::Unspecified => {
            reader.fail("", "must be set");
            None
        }
        v1::BuildState::Queued => Some(BuildState::Queued),
        v1::BuildState::Running => Some(BuildState::Running),
        v1::BuildState::Succeeded => Some(BuildState::Succeeded),
        v1::BuildState::Failed => Some(BuildState::Failed),
        v1::BuildState::Cancelled => Some(BuildState::Cancelled),
    });
    reader.done(state)
}

impl From<BuildState> for v1::BuildState {
    fn from(state: BuildState) -> Self {
        match state {
            BuildState::Queued => Self::Queued,
            BuildState::Running => Self::Running,
            BuildState::Succeeded => Self::Succeeded,
            BuildState::Failed => Self::Failed,
            BuildState::Cancelled => Self::Cancelled,
        }
    }
}

/// An event; `agent` is the name of the agent that it speaks of, if any.
pub fn event(record: Record, agent: Option<String>) -> v1::Event {
    use v1::event::Change as Wire;
    let change = match record.change {
        Change::Submitted { jobs } => Wire::Submitted(v1::BuildSubmitted { jobs: narrow(jobs) }),
        Change::Job(change) => Wire::Job(job_changed(change, agent)),
        Change::Build { state } => {
            Wire::BuildChanged(v1::BuildChanged { state: v1::BuildState::from(state).into() })
        }
    };
    v1::Event {
        build: record.build.to_string(),
        number: record.number,
        time_ms: record.at,
        change: Some(change),
    }
}

fn job_changed(change: JobChange, agent: Option<String>) -> v1::JobChanged {
    v1::JobChanged {
        job: change.job.to_string(),
        name: change.name,
        state: v1::JobState::from(change.status).into(),
        cancelling: change.cancelling,
        round: narrow(change.round),
        attempt: narrow(change.attempt),
        lease: change.lease.map(|lease| lease.to_string()).unwrap_or_default(),
        agent: agent.unwrap_or_default(),
        outcome: change.outcome.map(Into::into),
        reason: change.reason,
    }
}
