//! Messages as JSON: snake_case, words as in the database, times in milliseconds, nothing rounded. docs/json.md lists it.
//! Fields are only ever added.

use kiln_sdk::v1::{
    Agent, Artifact, AuditRecord, Build, Event, ExplainJobResponse, Job, JobArtifact, JobState,
    Outcome, Project, Reason, SecretInfo, Token, event::Change,
};
use serde_json::{Map, Value, json};

use crate::words;

/// Zero means "not yet" on the wire, and null here.
fn moment(ms: i64) -> Value {
    if ms == 0 { Value::Null } else { ms.into() }
}

fn text(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

pub(crate) fn build(build: &Build) -> Value {
    let count = |(state, count): (&i32, &i32)| {
        let state = JobState::try_from(*state).unwrap_or(JobState::Unspecified);
        (words::job_state(state), Value::from(*count))
    };
    let counts: Map<String, Value> = build.counts.iter().map(count).collect();
    json!({
        "id": build.id,
        "project": build.project,
        "title": build.title,
        "state": words::build_state(build.state()),
        "counts": counts,
        "last_event": build.last_event,
        "created_ms": build.created_ms,
        "finished_ms": moment(build.finished_ms),
        "priority": build.priority,
        "annotations": build.annotations.iter().collect::<std::collections::BTreeMap<_, _>>(),
        "key": text(&build.key),
        "submitter": text(&build.submitter),
    })
}

pub(crate) fn outcome(outcome: Option<&Outcome>) -> Value {
    let Some(outcome) = outcome else { return Value::Null };
    let failure = words::failure(outcome.failure());
    json!({
        "state": words::outcome_state(outcome.state()),
        "failure": text(if failure == "unspecified" { "" } else { &failure }),
        "exit_code": outcome.exit_code,
        "message": text(&outcome.message),
    })
}

pub(crate) fn job(job: &Job) -> Value {
    json!({
        "id": job.id,
        "build": job.build,
        "name": job.name,
        "state": words::job_state(job.state()),
        "cancelling": job.cancelling,
        "round": job.round,
        "attempt": job.attempt,
        "lease": text(&job.lease),
        "agent": text(&job.agent),
        "outcome": outcome(job.outcome.as_ref()),
        "queued_ms": moment(job.queued_ms),
        "started_ms": moment(job.started_ms),
        "finished_ms": moment(job.finished_ms),
        "needs": job.needs,
        "backend": job.backend,
        "allow_failure": job.allow_failure,
        "not_before_ms": moment(job.not_before_ms),
    })
}

pub(crate) fn event(event: &Event) -> Value {
    let (name, change) = match &event.change {
        Some(Change::Submitted(change)) => ("submitted", json!({ "jobs": change.jobs })),
        Some(Change::BuildChanged(change)) => {
            ("build", json!({ "state": words::build_state(change.state()) }))
        }
        Some(Change::Job(change)) => (
            "job",
            json!({
                "id": change.job,
                "name": change.name,
                "state": words::job_state(change.state()),
                "cancelling": change.cancelling,
                "round": change.round,
                "attempt": change.attempt,
                "lease": text(&change.lease),
                "agent": text(&change.agent),
                "outcome": outcome(change.outcome.as_ref()),
                "reason": text(&change.reason),
            }),
        ),
        None => ("unknown", Value::Null),
    };
    json!({
        "build": event.build,
        "number": event.number,
        "time_ms": event.time_ms,
        "change": name,
        name: change,
    })
}

fn reasons(reasons: &[Reason]) -> Value {
    reasons.iter().map(|r| json!({ "code": r.code, "message": r.message })).collect()
}

pub(crate) fn explanation(answer: &ExplainJobResponse) -> Value {
    let agents = answer.agents.iter().map(|verdict| {
        json!({
            "agent": verdict.agent,
            "fits": verdict.fits,
            "reasons": reasons(&verdict.reasons),
        })
    });
    json!({
        "job": answer.job.as_ref().map(job),
        "summary": answer.summary,
        "reasons": reasons(&answer.reasons),
        "agents": agents.collect::<Value>(),
        "lines": answer.lines,
        "lines_offset": answer.lines_offset,
    })
}

pub(crate) fn secret(secret: &SecretInfo) -> Value {
    json!({
        "name": secret.name,
        "project": secret.project,
        "set_ms": secret.set_ms,
        "set_by": secret.set_by,
        "key": secret.key,
    })
}

pub(crate) fn project(project: &Project) -> Value {
    json!({
        "name": project.name,
        "weight": project.weight,
        "max_running": if project.max_running == 0 { Value::Null } else { project.max_running.into() },
        "paused": project.paused,
        "running": project.running,
        "created_ms": project.created_ms,
    })
}

pub(crate) fn file(artifact: &Artifact) -> Map<String, Value> {
    [
        ("name", Value::from(artifact.name.as_str())),
        ("size", artifact.size.into()),
        ("sha256", artifact.sha256.as_str().into()),
        ("mode", artifact.mode.into()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

pub(crate) fn artifact(artifact: &JobArtifact) -> Value {
    let mut value = artifact.artifact.as_ref().map(file).unwrap_or_default();
    value.insert("job".into(), artifact.job.as_str().into());
    value.insert("job_name".into(), artifact.job_name.as_str().into());
    value.into()
}

pub(crate) fn agent(agent: &Agent) -> Value {
    let profile = agent.profile.clone().unwrap_or_default();
    let backends = profile.backends.iter().map(|offer| {
        json!({
            "backend": offer.backend,
            "slots": offer.slots,
            "features": offer.features,
            "operations": offer.operations,
            "unavailable": text(&offer.unavailable),
        })
    });
    let load = agent.load.as_ref().map(|load| {
        json!({
            "load_millis": load.load_millis,
            "memory_available_bytes": load.memory_available_bytes,
            "disk_available_bytes": load.disk_available_bytes,
        })
    });
    json!({
        "id": agent.id,
        "name": agent.name,
        "state": words::agent_state(agent.state()),
        "note": text(&agent.note),
        "resume_ms": moment(agent.resume_ms),
        "seen_ms": moment(agent.seen_ms),
        "leases": agent.leases,
        "load": load,
        "arch": profile.arch,
        "os": profile.os,
        "host": profile.host,
        "version": profile.version,
        "labels": profile.labels.iter().collect::<std::collections::BTreeMap<_, _>>(),
        "cpu_millis": profile.cpu_millis,
        "memory_bytes": profile.memory_bytes,
        "backends": backends.collect::<Value>(),
    })
}

pub(crate) fn audit_record(record: &AuditRecord) -> Value {
    json!({
        "number": record.number,
        "time_ms": record.time_ms,
        "actor_kind": record.actor_kind,
        "actor": text(&record.actor),
        "actor_name": record.actor_name,
        "peer": text(&record.peer),
        "action": record.action,
        "object": record.object,
        "object_name": text(&record.object_name),
        "changed": record.changed,
        "detail": text(&record.detail),
    })
}

pub(crate) fn token(token: &Token) -> Value {
    json!({
        "id": token.id,
        "name": token.name,
        "role": words::role(token.role()),
        "project": text(&token.project),
        "created_ms": token.created_ms,
        "expires_ms": moment(token.expires_ms),
        "last_used_ms": moment(token.last_used_ms),
        "used_by": text(&token.used_by),
        "used_ms": moment(token.used_ms),
    })
}
