//! The server's half of the session protocol: what an agent says and what the rows say go in, what to record and what
//! to say come out. No I/O; the simulation runs this very type.
//!
//! What the server wants to say is a *set* derived from what it knows (Assign until it is answered, Revoke until it is
//! finished), so nothing piles up and each heartbeat says again what is unanswered.

mod identity;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    id::{BuildId, JobId, LeaseId, SessionId},
    outcome::Outcome,
    spec::JobSpec,
    trace::Trace,
};

pub use identity::{Opened, Refusal, admit};

/// A lease as it is given to an agent: all that the agent needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub lease: LeaseId,
    pub job: JobId,
    pub build: BuildId,
    pub project: String,
    /// 1, 2, 3 … over all rounds.
    pub attempt: u32,
    pub spec: JobSpec,
    /// Artifacts of needed jobs to place into the workspace.
    pub inputs: Vec<Artifact>,
    /// It must not run when the agent can't be sure that its lease holds.
    pub exclusive: bool,
    /// Place of the lease's span.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Trace>,
}

/// A file that a job left.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Artifact {
    /// Path relative to the workspace.
    pub name: String,
    pub size: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    pub mode: u32,
}

/// How a lease ended, as its agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub outcome: Outcome,
    pub artifacts: Vec<Artifact>,
    /// Length in bytes of each stream of its log.
    pub log_lengths: BTreeMap<String, u64>,
}

/// Where a lease stands on its agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    Taken,
    Running,
    Finished,
}

/// What the rows say of a lease of an agent, when it says Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseFacts {
    pub lease: LeaseId,
    pub phase: LeasePhase,
    pub cancelling: bool,
}

/// Where a lease stands in the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeasePhase {
    /// Given, not started.
    Leased,
    /// Started.
    Running,
    /// Its report was taken.
    Finished,
    /// Given back, expired, or settled without a report.
    Void,
}

impl LeasePhase {
    pub const ALL: [Self; 4] = [Self::Leased, Self::Running, Self::Finished, Self::Void];

    /// The word for it in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leased => "leased",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Void => "void",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == word)
    }

    /// It holds its job.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Leased | Self::Running)
    }
}

/// What a Hello means for the leases of its agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Go on; the flag says that a cancel was asked for.
    pub keep: Vec<(LeaseId, bool)>,
    /// The agent forgets these.
    pub abandon: Vec<LeaseId>,
    /// Listed but not started: Hello counts as Started.
    pub start: Vec<LeaseId>,
    /// Not listed and never started: back to the queue, no attempt spent.
    pub give_back: Vec<LeaseId>,
    /// Not listed but started: lost.
    pub expire: Vec<LeaseId>,
}

/// Compares an agent's journal with the rows: those of its open leases, and of all leases that it lists.
pub fn reconcile(journal: &[(LeaseId, Held)], rows: &[LeaseFacts]) -> Reconciled {
    let rows: BTreeMap<_, _> = rows.iter().map(|facts| (facts.lease, facts)).collect();
    let listed: BTreeMap<_, _> = journal.iter().copied().collect();
    let mut result = Reconciled::default();
    for (&lease, &held) in &listed {
        match rows.get(&lease) {
            Some(facts) if facts.phase.is_open() => {
                result.keep.push((lease, facts.cancelling));
                if facts.phase == LeasePhase::Leased {
                    result.start.push(lease);
                }
            }
            Some(facts) if facts.phase == LeasePhase::Finished && held == Held::Finished => {
                result.keep.push((lease, false));
            }
            _ => result.abandon.push(lease),
        }
    }
    for (lease, facts) in rows {
        match facts.phase {
            LeasePhase::Leased if !listed.contains_key(&lease) => result.give_back.push(lease),
            LeasePhase::Running if !listed.contains_key(&lease) => result.expire.push(lease),
            _ => {}
        }
    }
    result
}

/// What goes into the session.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The claim gave these leases.
    Given(Vec<LeaseId>),
    /// The rows say that a cancel of this lease was asked for.
    Cancelling(LeaseId),
    /// The rows say that this lease holds its job no more.
    Voided(LeaseId),
    /// Someone drains the agent.
    Drain,
    /// The agent takes jobs again.
    Undrain,
    Heartbeat,
    Started(LeaseId),
    Refused(LeaseId, String),
    Finished(LeaseId, Report),
    /// What was to be recorded is committed, or refused: the lease is known to be dead.
    Recorded(LeaseId, Recorded),
}

/// The rows' answer to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    Started,
    Returned,
    Finished,
    /// The lease is not the job's any more.
    Stale,
}

/// What the session wants recorded; the answer comes back as [`Input::Recorded`].
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Start(LeaseId),
    Return(LeaseId, String),
    Finish(LeaseId, Report),
}

/// What the session wants to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Say {
    Ack(LeaseId),
    Abandon(LeaseId),
    Revoke(LeaseId),
    Assign(LeaseId),
    Drain,
    Beat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Assign is not answered.
    Given,
    Running,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    phase: Phase,
    cancelling: bool,
}

/// One open session of an agent.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    leases: BTreeMap<LeaseId, Lease>,
    draining: bool,
    say: BTreeSet<Say>,
}

impl Session {
    /// A session that goes on with what a Hello kept.
    pub fn open(id: SessionId, reconciled: &Reconciled) -> Self {
        let mut session =
            Self { id, leases: BTreeMap::new(), draining: false, say: BTreeSet::new() };
        for &(lease, cancelling) in &reconciled.keep {
            session.leases.insert(lease, Lease { phase: Phase::Running, cancelling });
            if cancelling {
                session.say.insert(Say::Revoke(lease));
            }
        }
        session
    }

    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Leases that the agent holds or is being given.
    pub fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.keys().copied()
    }

    /// Something is to be said.
    pub fn speaks(&self) -> bool {
        !self.say.is_empty()
    }

    /// Draws what is to be said now.
    pub fn take(&mut self) -> BTreeSet<Say> {
        std::mem::take(&mut self.say)
    }

    pub fn apply(&mut self, input: Input) -> Option<Record> {
        match input {
            Input::Given(leases) => {
                for lease in leases {
                    self.leases.insert(lease, Lease { phase: Phase::Given, cancelling: false });
                    self.say.insert(Say::Assign(lease));
                }
            }
            Input::Cancelling(lease) => {
                if let Some(known) = self.leases.get_mut(&lease)
                    && !known.cancelling
                {
                    known.cancelling = true;
                    self.say.insert(Say::Revoke(lease));
                }
            }
            Input::Voided(lease) => self.forget(lease, Say::Abandon(lease)),
            Input::Drain => {
                self.draining = true;
                self.say.insert(Say::Drain);
            }
            Input::Undrain => self.draining = false,
            Input::Heartbeat => self.repeat(),
            Input::Started(lease) => return Some(Record::Start(lease)),
            Input::Refused(lease, reason) => return Some(Record::Return(lease, reason)),
            Input::Finished(lease, report) => return Some(Record::Finish(lease, report)),
            Input::Recorded(lease, recorded) => self.recorded(lease, recorded),
        }
        None
    }

    fn recorded(&mut self, lease: LeaseId, recorded: Recorded) {
        match recorded {
            Recorded::Started => {
                if let Some(known) = self.leases.get_mut(&lease) {
                    known.phase = Phase::Running;
                    self.say.remove(&Say::Assign(lease));
                }
            }
            // An agent that gave a lease back has forgotten it.
            Recorded::Returned => {
                self.leases.remove(&lease);
                self.say.remove(&Say::Assign(lease));
                self.say.remove(&Say::Revoke(lease));
            }
            Recorded::Finished => self.forget(lease, Say::Ack(lease)),
            Recorded::Stale => self.forget(lease, Say::Abandon(lease)),
        }
    }

    fn forget(&mut self, lease: LeaseId, last_word: Say) {
        self.leases.remove(&lease);
        self.say.remove(&Say::Assign(lease));
        self.say.remove(&Say::Revoke(lease));
        self.say.insert(last_word);
    }

    fn repeat(&mut self) {
        self.say.insert(Say::Beat);
        for (&lease, known) in &self.leases {
            if known.phase == Phase::Given {
                self.say.insert(Say::Assign(lease));
            }
            if known.cancelling {
                self.say.insert(Say::Revoke(lease));
            }
        }
        if self.draining {
            self.say.insert(Say::Drain);
        }
    }
}

#[cfg(test)]
mod tests;
