//! Frames of a session that carry a lease.

use std::collections::BTreeMap;

use kiln_core::{
    id::{LeaseId, SessionId},
    secret::Secret,
    session::{Artifact, Assignment, Held, Report},
    spec::is_name,
};

use super::{Read, Reader, artifact, job_spec, narrow, outcome, wide};
use crate::v1;

/// An agent holds as many leases as it has slots; nobody has that many.
const MAX_JOURNAL: usize = 10_000;
/// Twice what the globs of a job can reasonably match.
const MAX_ARTIFACTS: usize = 10_000;
const MAX_STREAMS: usize = 100;

/// Where a lease stands on its agent.
pub fn held(field: &str, number: i32) -> Read<Held> {
    let mut reader = Reader::at(field);
    let held = reader.member("", number).and_then(|state| match state {
        v1::LeaseState::Unspecified => {
            reader.fail("", "must be set");
            None
        }
        v1::LeaseState::Taken => Some(Held::Taken),
        v1::LeaseState::Running => Some(Held::Running),
        v1::LeaseState::Finished => Some(Held::Finished),
    });
    reader.done(held)
}

impl From<Held> for v1::LeaseState {
    fn from(held: Held) -> Self {
        match held {
            Held::Taken => Self::Taken,
            Held::Running => Self::Running,
            Held::Finished => Self::Finished,
        }
    }
}

/// All leases that an agent holds; each at most once.
pub fn journal(field: &str, entries: Vec<v1::JournalEntry>) -> Read<Vec<(LeaseId, Held)>> {
    let mut reader = Reader::at(field);
    if entries.len() > MAX_JOURNAL {
        reader.fail("", format!("at most {MAX_JOURNAL} leases"));
        return reader.done(None);
    }
    let mut read = BTreeMap::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let path = format!("{field}[{index}]");
        let mut inner = Reader::at(path.as_str());
        let lease = inner.id("lease", &entry.lease);
        let state = held(&inner.name("state"), entry.state);
        let state = inner.take(state);
        if let Some((lease, state)) = reader.take(inner.done(lease.zip(state)))
            && read.insert(lease, state).is_some()
        {
            reader.found.push(kiln_core::spec::Violation::new(path, "is listed twice"));
        }
    }
    reader.done(Some(read.into_iter().collect()))
}

/// A lease as Hello lists it.
pub fn journal_entry(lease: LeaseId, held: Held) -> v1::JournalEntry {
    v1::JournalEntry { lease: lease.to_string(), state: v1::LeaseState::from(held).into() }
}

/// A lease and how it ended; `field` is the path of the message.
pub fn report(field: &str, finished: v1::Finished) -> Read<(LeaseId, Report)> {
    let mut reader = Reader::at(field);
    let lease = reader.id("lease", &finished.lease);
    let result = reader.message("outcome", finished.outcome, outcome);
    let artifacts = artifacts(&mut reader, "artifacts", finished.artifacts);
    reader.most("log_lengths", &finished.log_lengths, MAX_STREAMS);
    let log_lengths = finished
        .log_lengths
        .into_iter()
        .map(|(stream, length)| {
            let field = format!("log_lengths[{stream:?}]");
            if !is_name(&stream) {
                reader.fail(&field, "streams are 1 to 100 characters of [A-Za-z0-9._-]");
            }
            let length = reader.unsigned(&field, length);
            (stream, length)
        })
        .collect();
    let report = result.map(|outcome| Report { outcome, artifacts, log_lengths });
    reader.done(lease.zip(report))
}

/// The frame that says how a lease ended.
pub fn finished(lease: LeaseId, report: Report) -> v1::Finished {
    v1::Finished {
        lease: lease.to_string(),
        outcome: Some(report.outcome.into()),
        artifacts: report.artifacts.into_iter().map(Into::into).collect(),
        log_lengths: report
            .log_lengths
            .into_iter()
            .map(|(stream, length)| (stream, wide(length)))
            .collect(),
    }
}

fn artifacts(reader: &mut Reader, field: &str, list: Vec<v1::Artifact>) -> Vec<Artifact> {
    if list.len() > MAX_ARTIFACTS {
        reader.fail(field, format!("at most {MAX_ARTIFACTS}"));
        return vec![];
    }
    let mut read = Vec::with_capacity(list.len());
    for (index, item) in list.into_iter().enumerate() {
        let item = artifact(&reader.name(&format!("{field}[{index}]")), item);
        read.extend(reader.take(item));
    }
    read
}

impl From<&Secret> for v1::Secret {
    fn from(secret: &Secret) -> Self {
        Self { name: secret.name.clone(), value: secret.value.clone() }
    }
}

/// Secrets as they came; whoever takes them checks names and values.
pub fn secrets(list: Vec<v1::Secret>) -> Vec<Secret> {
    list.into_iter().map(|secret| Secret { name: secret.name, value: secret.value }).collect()
}

/// The frame that gives a lease.
pub fn assign(session: SessionId, assignment: Assignment, secrets: &[Secret]) -> v1::Assign {
    v1::Assign {
        session: session.to_string(),
        lease: assignment.lease.to_string(),
        job: assignment.job.to_string(),
        build: assignment.build.to_string(),
        project: assignment.project,
        attempt: narrow(assignment.attempt),
        spec: Some(assignment.spec.into()),
        secrets: secrets.iter().map(Into::into).collect(),
        inputs: assignment.inputs.into_iter().map(Into::into).collect(),
        exclusive: assignment.exclusive,
        traceparent: assignment.trace.map(|trace| trace.to_string()).unwrap_or_default(),
    }
}

/// A lease, and the session that it is meant for. Its secrets stay with the caller.
pub fn assignment(field: &str, assign: v1::Assign) -> Read<(SessionId, Assignment)> {
    let mut reader = Reader::at(field);
    let session = reader.id("session", &assign.session);
    let lease = reader.id("lease", &assign.lease);
    let job = reader.id("job", &assign.job);
    let build = reader.id("build", &assign.build);
    let spec = reader.message("spec", assign.spec, job_spec);
    let attempt = reader.count("attempt", assign.attempt);
    let inputs = artifacts(&mut reader, "inputs", assign.inputs);
    let (project, exclusive) = (assign.project, assign.exclusive);
    // A job is not refused for the sake of a trace.
    let trace = assign.traceparent.parse().ok();
    let read = match (session, lease, job, build, spec) {
        (Some(session), Some(lease), Some(job), Some(build), Some(spec)) => {
            let assignment =
                Assignment { lease, job, build, project, attempt, spec, inputs, exclusive, trace };
            Some((session, assignment))
        }
        _ => None,
    };
    reader.done(read)
}
