//! What use cases show, as messages.

use kiln_core::{
    Millis,
    agent::Admission,
    build::Counts,
    job::{State, Status},
    schedule::{Reason, Verdict},
};
use kiln_proto::{convert, v1};

use crate::app::views::{AgentView, BuildView, JobView, ProjectRow, QueueView, Role, TokenRow};

fn small(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

pub(super) fn build(view: BuildView) -> v1::Build {
    let state = v1::BuildState::from(view.build.state()).into();
    let row = view.build;
    v1::Build {
        id: row.id.to_string(),
        project: view.project,
        title: row.title,
        state,
        counts: counts(&row.counts),
        last_event: row.last_event,
        created_ms: row.created_at,
        finished_ms: row.finished_at.unwrap_or(0),
        priority: row.priority,
        annotations: row.annotations.into_iter().collect(),
        key: row.key.unwrap_or_default(),
        submitter: row.submitter,
    }
}

fn counts(counts: &Counts) -> std::collections::HashMap<i32, i32> {
    [
        (Status::Blocked, counts.blocked),
        (Status::Queued, counts.queued),
        (Status::Leased, counts.leased),
        (Status::Running, counts.running),
        (Status::Succeeded, counts.succeeded),
        (Status::Failed, counts.failed.saturating_add(counts.tolerated)),
        (Status::Cancelled, counts.cancelled),
    ]
    .into_iter()
    .filter(|(_, count)| *count > 0)
    .map(|(status, count)| (v1::JobState::from(status).into(), small(count)))
    .collect()
}

pub(super) fn job(view: JobView) -> v1::Job {
    let row = view.job;
    let (status, cancelling) = (row.job.status(), row.job.cancelling());
    let not_before = match row.job.state {
        State::Queued { not_before } => not_before,
        _ => 0,
    };
    let outcome = match row.job.state {
        State::Done(outcome) => Some(outcome.into()),
        _ => None,
    };
    v1::Job {
        id: row.job.id.to_string(),
        build: row.job.build.to_string(),
        name: row.name,
        state: v1::JobState::from(status).into(),
        cancelling,
        round: small(row.job.round),
        attempt: small(row.job.attempt),
        lease: row.job.lease.map(|lease| lease.to_string()).unwrap_or_default(),
        agent: view.agent.unwrap_or_default(),
        outcome,
        queued_ms: if status == Status::Blocked { 0 } else { row.job.queued_at },
        started_ms: row.started_at.unwrap_or(0),
        finished_ms: row.finished_at.unwrap_or(0),
        needs: view.needs,
        backend: row.backend,
        allow_failure: row.allow_failure,
        not_before_ms: not_before,
    }
}

pub(super) fn reason(reason: Reason) -> v1::Reason {
    v1::Reason { code: reason.code.to_owned(), message: reason.message }
}

pub(super) fn verdict(verdict: Verdict) -> v1::AgentVerdict {
    let reasons = verdict.reasons.into_iter().map(reason).collect();
    v1::AgentVerdict { agent: verdict.agent, fits: verdict.fits, reasons }
}

pub(super) fn project(row: ProjectRow) -> v1::Project {
    v1::Project {
        name: row.name,
        weight: small(row.weight),
        max_running: small(row.max_running),
        paused: row.paused,
        running: small(row.running),
        created_ms: row.created_at,
    }
}

pub(super) fn queue(view: QueueView) -> v1::QueueProject {
    v1::QueueProject {
        project: view.project,
        queued: small(view.queued),
        running: small(view.running),
        oldest_ms: view.oldest.unwrap_or(0),
    }
}

pub(super) fn agent(view: AgentView, now: Millis) -> v1::Agent {
    let agent = view.agent;
    let (state, note, resume_ms) = match agent.admission.at(now) {
        Admission::Draining => (v1::AgentState::Draining, String::new(), 0),
        Admission::Paused { note, resume_at } => {
            (v1::AgentState::Paused, note, resume_at.unwrap_or(0))
        }
        Admission::Open if agent.online => (v1::AgentState::Online, String::new(), 0),
        Admission::Open => (v1::AgentState::Offline, String::new(), 0),
    };
    v1::Agent {
        id: agent.id.to_string(),
        name: agent.name,
        state: state.into(),
        profile: Some(agent.profile.into()),
        note,
        resume_ms,
        leases: view.leases.iter().map(ToString::to_string).collect(),
        seen_ms: view.seen_at,
        load: Some(convert::heartbeat(agent.load, None)),
    }
}

pub(super) fn role(role: Role) -> v1::Role {
    match role {
        Role::Reader => v1::Role::Reader,
        Role::Submitter => v1::Role::Submitter,
        Role::Admin => v1::Role::Admin,
        Role::Enroller => v1::Role::Enroller,
    }
}

pub(super) fn token(row: TokenRow, project: String) -> v1::Token {
    v1::Token {
        id: row.id.to_string(),
        name: row.name,
        role: role(row.role).into(),
        project,
        created_ms: row.created_at,
        expires_ms: row.expires_at.unwrap_or(0),
        last_used_ms: row.last_used_at.unwrap_or(0),
        used_by: row.used.map(|(agent, _)| agent.to_string()).unwrap_or_default(),
        used_ms: row.used.map_or(0, |(_, at)| at),
    }
}
