//! What a server tells of the trace of a build: the submission, each wait in the queue, each lease and its end. All of
//! it follows from rows, so that it does not matter which server saw the beginning.

use kiln_core::{
    Millis,
    outcome::Outcome,
    session::LeasePhase,
    trace::{self, Span, Trace, span_id},
};

use super::Submit;
use crate::store::{BuildRow, LeaseRow, jobs::Moved};

const SCOPE: &str = "kiln-server";
/// Kinds of spans of one lease.
const LEASE: u16 = 0;
const QUEUED: u16 = 1;
const FINISH: u16 = 2;

/// Where the submission itself belongs.
pub(super) fn caller(submit: &Submit) -> Option<Trace> {
    let annotated = || submit.spec.annotations.get(trace::ANNOTATION)?.parse().ok();
    submit.trace.or_else(annotated)
}

/// Where a new build belongs: below the span of its submission, where this server tells of it.
pub(super) fn place(caller: Option<Trace>, build: &BuildRow) -> Option<Trace> {
    if !trace::is_on() {
        return caller;
    }
    let id = build.id.uuid();
    let root = Trace { trace: id.as_u128(), span: 0, sampled: true };
    Some(caller.unwrap_or(root).at(span_id(id, 0)))
}

/// Where the agent's part of a lease belongs.
pub(super) fn of_lease(place: Trace, lease: &LeaseRow) -> Trace {
    place.at(span_id(lease.id.uuid(), LEASE))
}

/// A build was submitted.
pub(super) fn submitted(caller: Option<Trace>, build: &BuildRow, from: Millis, to: Millis) {
    let Some(at) = build.trace() else { return };
    trace::tell(Span {
        name: "submit".to_owned(),
        at,
        parent: caller.map(|caller| caller.span),
        scope: SCOPE,
        from,
        to,
        attributes: vec![
            ("kiln.build", build.id.to_string()),
            ("kiln.jobs", build.counts.total().to_string()),
        ],
        error: None,
    });
}

/// Leases began or ended, and it was committed by `now`.
pub(super) fn moved(moved: &[Moved], now: Millis) {
    if !trace::is_on() {
        return;
    }
    for Moved { lease, since, traced } in moved {
        let Some((place, job)) = traced else { continue };
        let span = |name: &str, kind, parent, from, to| Span {
            name: name.to_owned(),
            at: place.at(span_id(lease.id.uuid(), kind)),
            parent: Some(parent),
            scope: SCOPE,
            from,
            to,
            attributes: vec![
                ("kiln.build", lease.build.to_string()),
                ("kiln.job", lease.job.to_string()),
                ("kiln.job.name", job.clone()),
                ("kiln.lease", lease.id.to_string()),
                ("kiln.attempt", lease.attempt.to_string()),
                ("kiln.agent", lease.agent.to_string()),
            ],
            error: None,
        };
        match lease.phase {
            LeasePhase::Leased => {
                trace::tell(span("queued", QUEUED, place.span, *since, lease.given_at));
            }
            LeasePhase::Running => {}
            LeasePhase::Finished | LeasePhase::Void => {
                let ended = lease.ended_at.unwrap_or(now);
                let mut whole = span("lease", LEASE, place.span, lease.given_at, ended);
                whole.error = error(lease);
                trace::tell(whole);
                let parent = of_lease(*place, lease).span;
                trace::tell(span("finish", FINISH, parent, ended, now.max(ended)));
            }
        }
    }
}

fn error(lease: &LeaseRow) -> Option<String> {
    match &lease.outcome {
        Some(Outcome::Succeeded) => None,
        Some(Outcome::Failed { message, .. } | Outcome::Cancelled { message }) => {
            Some(message.clone())
        }
        None => Some("it ended without a report".to_owned()),
    }
}
