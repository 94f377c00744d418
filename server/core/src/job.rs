//! The state machine of a job.
//!
//! ```text
//!            Unblock             Lease               Start
//! Blocked ────────────▶ Queued ────────▶ Leased ───────────▶ Running
//!    │                  ▲  │             │    │                 │
//!    │ Skip, Cancel     │  │ Cancel,     │    │ Finish, Expire  │ Finish, Expire
//!    ▼                  │  ▼ Overdue     │    ▼                 ▼
//!   Done ◀──────────────┼──┴─────────────┼────┴─────────────────┘
//!    │                  └────────────────┘ Return, or a failure that is tried again
//!    └─ Retry: a new round, Blocked or Queued
//! ```
//!
//! Cancel of a leased job is a flag on the lease: the outcome comes from the agent or from expiry.

use serde::{Deserialize, Serialize};

use crate::{
    Millis,
    id::{BuildId, JobId, LeaseId},
    outcome::{FailureKind, Outcome, RetryPolicy},
};

/// How often a lease may come back unstarted before the job fails.
pub const MAX_RETURNS: u32 = 10;

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Waits for jobs that it needs.
    Blocked,
    /// Waits for an agent; not leased before `not_before`, which is zero where nothing is to be waited for.
    Queued { not_before: Millis },
    /// Given to an agent that has not started it yet.
    Leased { lease: LeaseId, cancelling: bool },
    /// Runs.
    Running { lease: LeaseId, cancelling: bool },
    /// Ended.
    Done(Outcome),
}

/// A state without its data: the column, the word, the index of a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Blocked,
    Queued,
    Leased,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl Status {
    pub const ALL: [Self; 7] = [
        Self::Blocked,
        Self::Queued,
        Self::Leased,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The word for it in the database, on the command line and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Queued => "queued",
            Self::Leased => "leased",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    pub const fn is_done(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// What a job's row holds of it. The specification is a row of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub id: JobId,
    pub build: BuildId,
    pub state: State,
    /// Rounds begin at 1.
    pub round: u32,
    /// Attempts of this round that were spent.
    pub attempt: u32,
    /// Attempts over all rounds, for people.
    pub attempts: u32,
    /// Leases of this round that came back unstarted.
    pub returns: u32,
    /// The last lease ever given.
    pub lease: Option<LeaseId>,
    /// The last lease whose result was taken: said again, it is acknowledged again.
    pub answered: Option<LeaseId>,
    /// When the current wait in the queue began.
    pub queued_at: Millis,
    /// How long it may wait in the queue.
    pub queue_timeout_ms: Millis,
    pub retry: RetryPolicy,
}

/// What happens to a job; the time comes in beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Its last open need ended well.
    Unblock,
    /// A job it needs did not end well.
    Skip(SkipReason),
    /// It is given to an agent.
    Lease(LeaseId),
    /// The agent started it.
    Start(LeaseId),
    /// The agent gave it back unstarted, or never got it.
    Return(LeaseId),
    /// The agent says how it ended.
    Finish(LeaseId, Outcome),
    /// The agent is lost.
    Expire(LeaseId),
    /// It waited in the queue for longer than it may.
    Overdue,
    /// Someone asked to cancel it.
    Cancel,
    /// Someone asked for a new round, having seen the given one.
    Retry { round: u32, blocked: bool },
}

/// Why a blocked job will never run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    NeedFailed,
    NeedCancelled,
}

/// What follows from a change, after it is committed. Every effect can be lost: a sweep repeats it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It can be leased now.
    Wake,
    /// Tell the agent to stop it.
    Revoke(LeaseId),
    /// The job is done; its dependents follow.
    Settle(Outcome),
}

/// Why an event changes nothing. A decision, not a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It speaks of a lease that is not the job's any more.
    #[error("the lease is not the job's any more")]
    Stale,
    /// It had been applied before; acknowledge it again.
    #[error("it was applied before")]
    Repeated,
    #[error("the job is done")]
    Finished,
    #[error("the job is not queued")]
    NotQueued,
    #[error("the job may not be leased yet")]
    TooEarly,
    #[error("the job is not blocked")]
    NotBlocked,
    #[error("the job has started")]
    HasStarted,
    #[error("the job is not done")]
    NotDone,
    #[error("the job succeeded")]
    HasSucceeded,
    #[error("the job is in another round")]
    OtherRound,
}

type Change = (Job, Vec<Effect>);

impl Job {
    pub fn status(&self) -> Status {
        match &self.state {
            State::Blocked => Status::Blocked,
            State::Queued { .. } => Status::Queued,
            State::Leased { .. } => Status::Leased,
            State::Running { .. } => Status::Running,
            State::Done(Outcome::Succeeded) => Status::Succeeded,
            State::Done(Outcome::Failed { .. }) => Status::Failed,
            State::Done(Outcome::Cancelled { .. }) => Status::Cancelled,
        }
    }

    /// The lease that holds it now.
    pub fn open_lease(&self) -> Option<LeaseId> {
        match self.state {
            State::Leased { lease, .. } | State::Running { lease, .. } => Some(lease),
            _ => None,
        }
    }

    pub fn cancelling(&self) -> bool {
        matches!(
            self.state,
            State::Leased { cancelling: true, .. } | State::Running { cancelling: true, .. }
        )
    }

    /// Its wait before another attempt is over. A clock that went back behind the beginning of the wait ends it: nobody
    /// can tell how long it would still be.
    pub fn is_due(&self, at: Millis) -> bool {
        match self.state {
            State::Queued { not_before } => not_before <= at || self.queued_at > at,
            _ => false,
        }
    }

    /// The only way in which a job changes.
    pub fn apply(self, event: Event, at: Millis) -> Result<Change, Rejected> {
        match event {
            Event::Unblock => self.unblock(at),
            Event::Skip(reason) => self.skip(reason),
            Event::Lease(lease) => self.leased(lease, at),
            Event::Start(lease) => self.start(lease),
            Event::Return(lease) => self.give_back(lease, at),
            Event::Finish(lease, _) if self.answered == Some(lease) => Err(Rejected::Repeated),
            Event::Finish(lease, outcome) => {
                Self { answered: Some(lease), ..self }.end(lease, outcome, at)
            }
            Event::Expire(lease) => {
                self.end(lease, Outcome::failed(FailureKind::Lost, "the agent was lost"), at)
            }
            Event::Overdue => self.overdue(at),
            Event::Cancel => self.cancel(),
            Event::Retry { round, blocked } => self.retry(round, blocked, at),
        }
    }

    fn unblock(self, at: Millis) -> Result<Change, Rejected> {
        match self.state {
            State::Blocked => Ok(self.queue(at, 0)),
            _ => Err(Rejected::NotBlocked),
        }
    }

    fn skip(self, reason: SkipReason) -> Result<Change, Rejected> {
        let State::Blocked = self.state else { return Err(Rejected::NotBlocked) };
        Ok(self.settle(match reason {
            SkipReason::NeedFailed => {
                Outcome::failed(FailureKind::Dependency, "a job it needs failed")
            }
            SkipReason::NeedCancelled => Outcome::cancelled("a job it needs was cancelled"),
        }))
    }

    fn leased(self, lease: LeaseId, at: Millis) -> Result<Change, Rejected> {
        match self.state {
            State::Queued { .. } if !self.is_due(at) => Err(Rejected::TooEarly),
            State::Queued { .. } => Ok((
                Self {
                    state: State::Leased { lease, cancelling: false },
                    attempt: self.attempt + 1,
                    attempts: self.attempts + 1,
                    lease: Some(lease),
                    ..self
                },
                vec![],
            )),
            _ => Err(Rejected::NotQueued),
        }
    }

    fn start(self, lease: LeaseId) -> Result<Change, Rejected> {
        match self.held(lease)? {
            Held { running: true, .. } => Err(Rejected::Repeated),
            Held { cancelling, .. } => {
                Ok((Self { state: State::Running { lease, cancelling }, ..self }, vec![]))
            }
        }
    }

    fn give_back(self, lease: LeaseId, at: Millis) -> Result<Change, Rejected> {
        let held = self.held(lease)?;
        if held.running {
            return Err(Rejected::HasStarted);
        }
        if held.cancelling {
            return Ok(self.settle(Outcome::cancelled("cancelled before it started")));
        }
        if self.returns >= MAX_RETURNS {
            let message = format!("no agent started it in {} leases", MAX_RETURNS + 1);
            return Ok(self.settle(Outcome::failed(FailureKind::Infra, message)));
        }
        let job = Self {
            attempt: self.attempt - 1,
            attempts: self.attempts - 1,
            returns: self.returns + 1,
            ..self
        };
        Ok(job.queue(at, 0))
    }

    fn end(self, lease: LeaseId, outcome: Outcome, at: Millis) -> Result<Change, Rejected> {
        let held = self.held(lease)?;
        match outcome {
            Outcome::Succeeded | Outcome::Cancelled { .. } => Ok(self.settle(outcome)),
            Outcome::Failed { .. } if held.cancelling => {
                Ok(self.settle(Outcome::cancelled("cancelled on request")))
            }
            Outcome::Failed { kind, .. } => match self.retry.next(kind, self.attempt) {
                Some(wait) => Ok(self.queue(at, at.saturating_add(wait))),
                None => Ok(self.settle(outcome)),
            },
        }
    }

    fn overdue(self, at: Millis) -> Result<Change, Rejected> {
        match self.state {
            State::Queued { .. } if at.saturating_sub(self.queued_at) < self.queue_timeout_ms => {
                Err(Rejected::TooEarly)
            }
            State::Queued { .. } => {
                let message =
                    format!("no agent took it within {} s", self.queue_timeout_ms / 1_000);
                Ok(self.settle(Outcome::failed(FailureKind::Timeout, message)))
            }
            _ => Err(Rejected::NotQueued),
        }
    }

    fn cancel(self) -> Result<Change, Rejected> {
        match self.state {
            State::Blocked | State::Queued { .. } => {
                Ok(self.settle(Outcome::cancelled("cancelled before it started")))
            }
            State::Leased { cancelling: true, .. } | State::Running { cancelling: true, .. } => {
                Err(Rejected::Repeated)
            }
            State::Leased { lease, .. } => Ok((
                Self { state: State::Leased { lease, cancelling: true }, ..self },
                vec![Effect::Revoke(lease)],
            )),
            State::Running { lease, .. } => Ok((
                Self { state: State::Running { lease, cancelling: true }, ..self },
                vec![Effect::Revoke(lease)],
            )),
            State::Done(_) => Err(Rejected::Finished),
        }
    }

    fn retry(self, round: u32, blocked: bool, at: Millis) -> Result<Change, Rejected> {
        if self.round == round.saturating_add(1) {
            return Err(Rejected::Repeated);
        }
        match &self.state {
            _ if self.round != round => Err(Rejected::OtherRound),
            State::Done(Outcome::Succeeded) => Err(Rejected::HasSucceeded),
            State::Done(_) => {
                let job = Self { round: round + 1, attempt: 0, returns: 0, ..self };
                if blocked {
                    return Ok((Self { state: State::Blocked, ..job }, vec![]));
                }
                Ok(job.queue(at, 0))
            }
            _ => Err(Rejected::NotDone),
        }
    }

    /// The lease is the one that holds the job; else why not.
    fn held(&self, lease: LeaseId) -> Result<Held, Rejected> {
        match self.state {
            State::Leased { lease: held, cancelling } if held == lease => {
                Ok(Held { running: false, cancelling })
            }
            State::Running { lease: held, cancelling } if held == lease => {
                Ok(Held { running: true, cancelling })
            }
            _ => Err(Rejected::Stale),
        }
    }

    fn queue(self, queued_at: Millis, not_before: Millis) -> Change {
        (Self { state: State::Queued { not_before }, queued_at, ..self }, vec![Effect::Wake])
    }

    fn settle(self, outcome: Outcome) -> Change {
        (Self { state: State::Done(outcome.clone()), ..self }, vec![Effect::Settle(outcome)])
    }
}

struct Held {
    running: bool,
    cancelling: bool,
}

#[cfg(test)]
mod tests;
