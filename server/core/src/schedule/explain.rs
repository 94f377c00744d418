//! Why a job waits, agent by agent.

use super::{Class, admits};
use crate::{
    Millis,
    agent::{Admission, Agent},
    job::{Job, State},
};

/// One thing that holds a job back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Stable upper-case word.
    pub code: &'static str,
    /// One sentence for a person.
    pub message: String,
}

impl Reason {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Whether an agent would take the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub agent: String,
    pub fits: bool,
    pub reasons: Vec<Reason>,
}

/// What surrounds a job that waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wait {
    /// Names of needed jobs that are not done.
    pub needs: Vec<String>,
    pub project_paused: bool,
    /// Jobs of the project that hold leases, and its limit.
    pub project_running: u32,
    pub project_limit: Option<u32>,
    /// Name of its concurrency group, and the jobs that go first.
    pub group: Option<(String, Vec<String>)>,
    /// Why the last agent gave it back.
    pub returned: Option<String>,
    /// Jobs that are ahead of it in the queue of its class.
    pub ahead: u32,
    /// Why a cancel was asked for.
    pub cancelled: Option<String>,
}

/// One sentence, what holds the job back whatever the agent, and each agent's view.
pub fn explain(
    job: &Job,
    class: &Class,
    wait: &Wait,
    agents: &[Agent],
    now: Millis,
) -> (String, Vec<Reason>, Vec<Verdict>) {
    match &job.state {
        State::Blocked => {
            let summary = format!("waits for {} that it needs", count(wait.needs.len(), "job"));
            (
                summary,
                vec![Reason::new("NEEDS", format!("not done: {}", wait.needs.join(", ")))],
                vec![],
            )
        }
        State::Queued { not_before } => {
            let reasons = held_back(*not_before, wait, now);
            let verdicts: Vec<_> = agents.iter().map(|agent| verdict(class, agent, now)).collect();
            (summary(&reasons, &verdicts), reasons, verdicts)
        }
        State::Leased { cancelling, .. } => (
            with_cancel("given to an agent that has not started it yet", *cancelling),
            cancel(wait),
            vec![],
        ),
        State::Running { cancelling, .. } => {
            (with_cancel("runs", *cancelling), cancel(wait), vec![])
        }
        State::Done(outcome) => (ended(outcome), vec![], vec![]),
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn ahead(jobs: u32) -> String {
    if jobs == 1 {
        "1 job is ahead of it".to_owned()
    } else {
        format!("{jobs} jobs are ahead of it")
    }
}

fn with_cancel(text: &str, cancelling: bool) -> String {
    if cancelling { format!("{text}; a cancel was asked for") } else { text.to_owned() }
}

fn cancel(wait: &Wait) -> Vec<Reason> {
    let reason = wait.cancelled.iter().filter(|reason| !reason.is_empty());
    reason.map(|reason| Reason::new("CANCELLING", format!("cancelled: {reason}"))).collect()
}

fn ended(outcome: &crate::outcome::Outcome) -> String {
    use crate::outcome::Outcome;
    match outcome {
        Outcome::Succeeded => "succeeded".to_owned(),
        Outcome::Failed { kind, message, .. } => format!("failed ({}): {message}", kind.as_str()),
        Outcome::Cancelled { message } => format!("cancelled: {message}"),
    }
}

fn held_back(not_before: Millis, wait: &Wait, now: Millis) -> Vec<Reason> {
    let mut reasons = vec![];
    if not_before > now {
        reasons.push(Reason::new(
            "BACKOFF",
            format!("is tried again in {} s", (not_before - now + 999) / 1_000),
        ));
    }
    if wait.project_paused {
        reasons.push(Reason::new("PROJECT_PAUSED", "its project is paused"));
    }
    if let Some(limit) = wait.project_limit.filter(|limit| wait.project_running >= *limit) {
        reasons.push(Reason::new(
            "PROJECT_LIMIT",
            format!("its project runs {} of at most {limit} jobs", wait.project_running),
        ));
    }
    if let Some((group, first)) = wait.group.as_ref().filter(|(_, first)| !first.is_empty()) {
        reasons.push(Reason::new(
            "CONCURRENCY_GROUP",
            format!("group {group:?} is held by: {}", first.join(", ")),
        ));
    }
    if let Some(why) = &wait.returned {
        reasons.push(Reason::new("RETURNED", format!("the last agent gave it back: {why}")));
    }
    if wait.ahead > 0 {
        reasons.push(Reason::new("QUEUE", ahead(wait.ahead)));
    }
    reasons
}

fn verdict(class: &Class, agent: &Agent, now: Millis) -> Verdict {
    let mut reasons = class.misfits(agent);
    let fits = reasons.is_empty();
    if !agent.online {
        reasons.push(Reason::new("OFFLINE", "is not connected"));
    }
    match agent.admission.clone().at(now) {
        Admission::Open => {}
        Admission::Paused { note, .. } if note.is_empty() => {
            reasons.push(Reason::new("PAUSED", "is paused"));
        }
        Admission::Paused { note, .. } => {
            reasons.push(Reason::new("PAUSED", format!("is paused: {note}")));
        }
        Admission::Draining => reasons.push(Reason::new("DRAINING", "is draining")),
    }
    if fits && admits(agent, now) && agent.free(&class.backend) == 0 {
        let slots = agent.profile.backends.get(&class.backend).map_or(0, |offer| offer.slots);
        reasons.push(Reason::new(
            "NO_FREE_SLOT",
            format!("all {slots} slots of {:?} are busy", class.backend),
        ));
    }
    Verdict { agent: agent.name.clone(), fits, reasons }
}

fn summary(reasons: &[Reason], verdicts: &[Verdict]) -> String {
    let fit = verdicts.iter().filter(|verdict| verdict.fits).count();
    let ready = verdicts.iter().filter(|verdict| verdict.reasons.is_empty()).count();
    let barred = reasons.iter().find(|reason| !matches!(reason.code, "QUEUE" | "RETURNED"));
    match barred {
        Some(reason) => reason.message.clone(),
        None if verdicts.is_empty() => "no agent is enrolled".to_owned(),
        None if fit == 0 => format!("none of {} can run it", count(verdicts.len(), "agent")),
        None if ready == 0 => {
            format!("{fit} of {} can run it, none has room now", count(verdicts.len(), "agent"))
        }
        None => format!("{} can take it now", count(ready, "agent")),
    }
}
