//! The agent's half of the session protocol: frames and what happens on this machine go in, what to do comes out.
//! No I/O; the simulation runs this very type.
//!
//! Outputs are carried out in order. `Save` is durable before the next one begins: a lease that was ever said to be
//! taken, running or finished is in the journal after a crash.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{
    Millis,
    id::{LeaseId, SessionId},
    session::{Assignment, Held, Report},
};
use serde::{Deserialize, Serialize};

/// A job of an exclusive group is ended this long before the server may give its lease to another agent.
pub const EXCLUSIVE_MARGIN_MS: Millis = 15_000;

/// What the journal holds of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub assignment: Assignment,
    pub state: EntryState,
    /// When it was taken, in milliseconds since the machine's start.
    #[serde(default)]
    pub taken_at: Millis,
    /// The machine was started anew since: whatever ran of it is dead.
    #[serde(default)]
    pub interrupted: bool,
}

/// Where a lease stands on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryState {
    Taken,
    Running,
    Finished(Report),
}

impl Entry {
    /// One that is taken at this time.
    pub fn taken(assignment: Assignment, taken_at: Millis) -> Self {
        Self { assignment, state: EntryState::Taken, taken_at, interrupted: false }
    }

    fn held(&self) -> Held {
        match self.state {
            EntryState::Taken => Held::Taken,
            EntryState::Running => Held::Running,
            EntryState::Finished(_) => Held::Finished,
        }
    }
}

/// What goes in.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The server opened a session.
    Welcome {
        session: SessionId,
        grace_ms: Millis,
        keep: Vec<(LeaseId, bool)>,
        abandon: Vec<LeaseId>,
    },
    Assign {
        session: SessionId,
        assignment: Box<Assignment>,
    },
    Ack(LeaseId),
    Revoke(LeaseId),
    Abandon(LeaseId),
    Drain,
    /// The server answered a heartbeat.
    Beat,
    /// The stream ended.
    Disconnected,
    /// The job's process runs.
    Started(LeaseId),
    /// The job ended.
    Ended(LeaseId, Report),
    /// The server has the whole log.
    LogSealed(LeaseId),
    /// Time goes by.
    Tick,
    /// The server knows this agent no more, nor what becomes of its leases.
    Evicted,
    /// The person at this machine wants it to stop once its jobs are done.
    Stop,
}

/// What to say.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    Started(LeaseId),
    Refused(LeaseId, String),
    Finished(LeaseId, Report),
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Write the entry to the journal, durably.
    Save(LeaseId),
    /// Remove the entry from the journal, with the workspace, the spool and the container.
    Remove(LeaseId),
    Send(Frame),
    Run(Box<Assignment>),
    /// End the job; its outcome is still wanted.
    Cancel(LeaseId),
    /// End the job as lost: the server may soon give its concurrency group to another.
    Forsake(LeaseId),
    /// End the job; nothing of it is wanted.
    Kill(LeaseId),
    /// Nothing is left to do: leave.
    Exit,
}

/// All leases of this agent, and its session.
#[derive(Debug, Default)]
pub struct Leases {
    entries: BTreeMap<LeaseId, Entry>,
    acked: BTreeSet<LeaseId>,
    sealed: BTreeSet<LeaseId>,
    session: Option<SessionId>,
    grace_ms: Millis,
    /// When the server was last heard, on a clock that only goes forward.
    heard_at: Millis,
    leaving: bool,
}

impl Leases {
    /// Goes on with what the journal holds after a restart.
    ///
    /// A process outlives no boot and moves with no folder. Where this is not the `home` of the journal, what did not
    /// finish is gone, or is another's: only results count.
    pub fn restore(entries: impl IntoIterator<Item = Entry>, home: bool) -> Self {
        let entries = entries
            .into_iter()
            .filter(|entry| home || entry.held() == Held::Finished)
            .map(|entry| (entry.assignment.lease, entry))
            .collect();
        Self { entries, ..Self::default() }
    }

    /// What Hello lists.
    pub fn journal(&self) -> Vec<(LeaseId, Held)> {
        self.entries.iter().map(|(&lease, entry)| (lease, entry.held())).collect()
    }

    pub fn entry(&self, lease: LeaseId) -> Option<&Entry> {
        self.entries.get(&lease)
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    pub fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// Takes what happened at `now`, on a clock that only goes forward, while the machine sleeps too.
    pub fn apply(&mut self, input: Input, now: Millis) -> Vec<Output> {
        let mut out = match input {
            Input::Welcome { session, grace_ms, keep, abandon } => {
                self.heard_at = now;
                self.grace_ms = grace_ms;
                self.welcome(session, &keep, &abandon)
            }
            Input::Assign { session, assignment } => self.assign(session, *assignment, now),
            Input::Ack(lease) => {
                self.acked.insert(lease);
                self.forget_if_complete(lease)
            }
            Input::Revoke(lease) => self.revoke(lease),
            Input::Abandon(lease) => self.abandon(lease),
            Input::Evicted => {
                self.session = None;
                self.leaving = true;
                let all: Vec<_> = self.entries.keys().copied().collect();
                all.into_iter().flat_map(|lease| self.abandon(lease)).collect()
            }
            Input::Drain | Input::Stop => {
                self.leaving = true;
                vec![]
            }
            Input::Beat => {
                self.heard_at = now;
                vec![]
            }
            Input::Disconnected => {
                self.session = None;
                vec![]
            }
            Input::Started(lease) => self.started(lease),
            Input::Ended(lease, report) => self.ended(lease, report),
            Input::LogSealed(lease) => {
                self.sealed.insert(lease);
                self.forget_if_complete(lease)
            }
            Input::Tick => self.end_exclusive(now),
        };
        if self.leaving && self.entries.is_empty() {
            out.push(Output::Exit);
        }
        out
    }

    fn welcome(
        &mut self,
        session: SessionId,
        keep: &[(LeaseId, bool)],
        abandon: &[LeaseId],
    ) -> Vec<Output> {
        self.session = Some(session);
        let mut out: Vec<Output> = abandon.iter().flat_map(|&lease| self.abandon(lease)).collect();
        for &(lease, cancelling) in keep {
            match self.entries.get(&lease).map(|entry| &entry.state) {
                Some(EntryState::Finished(report)) => {
                    out.push(Output::Send(Frame::Finished(lease, report.clone())));
                }
                Some(EntryState::Running) => out.push(Output::Send(Frame::Started(lease))),
                Some(EntryState::Taken) | None => {}
            }
            if cancelling {
                out.extend(self.revoke(lease));
            }
        }
        out
    }

    fn assign(&mut self, session: SessionId, assignment: Assignment, now: Millis) -> Vec<Output> {
        if self.session != Some(session) {
            return vec![];
        }
        let lease = assignment.lease;
        match self.entries.get(&lease).map(|entry| &entry.state) {
            Some(EntryState::Taken) => vec![],
            Some(EntryState::Running) => vec![Output::Send(Frame::Started(lease))],
            Some(EntryState::Finished(report)) => {
                vec![Output::Send(Frame::Finished(lease, report.clone()))]
            }
            None if self.leaving => {
                vec![Output::Send(Frame::Refused(lease, "the agent is leaving".to_owned()))]
            }
            None => {
                self.entries.insert(lease, Entry::taken(assignment.clone(), now));
                vec![Output::Save(lease), Output::Run(Box::new(assignment))]
            }
        }
    }

    fn started(&mut self, lease: LeaseId) -> Vec<Output> {
        match self.entries.get_mut(&lease) {
            Some(entry) if entry.state == EntryState::Taken => {
                entry.state = EntryState::Running;
                vec![Output::Save(lease), Output::Send(Frame::Started(lease))]
            }
            _ => vec![],
        }
    }

    fn ended(&mut self, lease: LeaseId, report: Report) -> Vec<Output> {
        match self.entries.get_mut(&lease) {
            Some(entry) if !matches!(entry.state, EntryState::Finished(_)) => {
                entry.state = EntryState::Finished(report.clone());
                vec![Output::Save(lease), Output::Send(Frame::Finished(lease, report))]
            }
            _ => vec![],
        }
    }

    fn revoke(&mut self, lease: LeaseId) -> Vec<Output> {
        match self.entries.get(&lease).map(|entry| &entry.state) {
            Some(EntryState::Taken | EntryState::Running) => vec![Output::Cancel(lease)],
            Some(EntryState::Finished(_)) | None => vec![],
        }
    }

    fn abandon(&mut self, lease: LeaseId) -> Vec<Output> {
        match self.entries.remove(&lease) {
            Some(entry) => {
                self.acked.remove(&lease);
                self.sealed.remove(&lease);
                let kill = !matches!(entry.state, EntryState::Finished(_));
                kill.then_some(Output::Kill(lease))
                    .into_iter()
                    .chain([Output::Remove(lease)])
                    .collect()
            }
            None => vec![],
        }
    }

    /// A lease leaves the journal on the Ack of its result and of its log.
    fn forget_if_complete(&mut self, lease: LeaseId) -> Vec<Output> {
        let finished =
            matches!(self.entries.get(&lease), Some(Entry { state: EntryState::Finished(_), .. }));
        if finished && self.acked.contains(&lease) && self.sealed.contains(&lease) {
            self.entries.remove(&lease);
            self.acked.remove(&lease);
            self.sealed.remove(&lease);
            return vec![Output::Remove(lease)];
        }
        vec![]
    }

    /// How long an exclusive job may run without an answer of the server. Its supervisor keeps the same time, for when
    /// this process is dead. Zero before the first Welcome.
    pub fn lifeline_ms(&self) -> Millis {
        self.grace_ms - EXCLUSIVE_MARGIN_MS.min(self.grace_ms / 4)
    }

    /// Without an answer for nearly the grace time, another agent may soon hold the group: end ours first.
    fn end_exclusive(&mut self, now: Millis) -> Vec<Output> {
        if self.grace_ms == 0 || now - self.heard_at < self.lifeline_ms() {
            return vec![];
        }
        let exclusive = self.entries.values().filter(|entry| entry.assignment.exclusive);
        exclusive
            .filter(|entry| !matches!(entry.state, EntryState::Finished(_)))
            .map(|entry| Output::Forsake(entry.assignment.lease))
            .collect()
    }
}

#[cfg(test)]
mod tests;
