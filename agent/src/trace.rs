//! What an agent tells of the trace of a build: the job from its start here to its report, and each stage of its log.
//! The marks in the lease folder say when a stage began, so that an agent that was restarted in between tells it all.

use kiln_core::{
    Millis,
    outcome::Outcome,
    session::Assignment,
    trace::{self, Span, Trace, span_id},
};

use crate::run::StageMark;

const SCOPE: &str = "kiln-agent";
/// Kinds of spans of one lease; those of the server are below.
const JOB: u16 = 16;
const PREPARE: u16 = 17;
/// The first stage; the others follow.
const STAGE: u16 = 18;

/// Where a job's spans belong; nothing where nobody wants them.
pub(crate) fn place(job: &Assignment) -> Option<Trace> {
    job.trace.filter(|place| trace::is_on() && place.sampled)
}

/// A job has ended. `from` and `to` are as people read them.
pub(crate) fn ended(
    job: &Assignment,
    place: Trace,
    marks: &[StageMark],
    (from, to): (Millis, Millis),
    outcome: &Outcome,
) {
    let id = |kind| span_id(job.lease.uuid(), kind);
    let above = id(JOB);
    let span = |name: String, kind, parent, from, to| Span {
        name,
        at: place.at(id(kind)),
        parent: Some(parent),
        scope: SCOPE,
        from,
        to,
        attributes: vec![("kiln.lease", job.lease.to_string())],
        error: None,
    };
    let mut whole = span("job".to_owned(), JOB, place.span, from, to);
    whole.attributes.extend([
        ("kiln.job", job.job.to_string()),
        ("kiln.job.name", job.spec.name.clone()),
        ("kiln.backend", job.spec.backend.clone()),
    ]);
    whole.error = match outcome {
        Outcome::Succeeded => None,
        Outcome::Failed { message, .. } | Outcome::Cancelled { message } => Some(message.clone()),
    };
    trace::tell(whole);
    let first = marks.first().map_or(to, |mark| mark.time_ms);
    trace::tell(span("prepare".to_owned(), PREPARE, above, from, first));
    let ends = marks.iter().skip(1).map(|mark| mark.time_ms).chain([to]);
    for ((mark, end), kind) in marks.iter().zip(ends).zip(STAGE..) {
        trace::tell(span(mark.name.clone(), kind, above, mark.time_ms, end));
    }
}
