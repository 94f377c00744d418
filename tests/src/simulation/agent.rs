//! A scripted machine: the real lease code, a journal that survives, processes that outlive the agent.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use kiln_agent::lease::{Entry, EntryState, Frame, Input, Leases, Output};
use kiln_core::{
    Millis,
    id::{AgentId, LeaseId, SessionId},
    outcome::{FailureKind, Outcome},
    session::{Assignment, Held, Report, Session},
};

/// What travels to the server.
#[derive(Debug, Clone)]
pub(super) enum Up {
    Hello { epoch: i64, journal: Vec<(LeaseId, Held)> },
    Heartbeat,
    Frame(Frame),
}

/// What travels to the agent.
#[derive(Debug, Clone)]
pub(super) enum Down {
    Welcome { session: SessionId, keep: Vec<(LeaseId, bool)>, abandon: Vec<LeaseId> },
    Assign { session: SessionId, assignment: Box<Assignment> },
    Ack(LeaseId),
    Revoke(LeaseId),
    Abandon(LeaseId),
    Drain,
    Beat,
}

impl fmt::Display for Up {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello { epoch, journal } => write!(f, "Hello {epoch}, journal {journal:?}"),
            Self::Heartbeat => f.write_str("Heartbeat"),
            Self::Frame(Frame::Finished(lease, report)) => {
                write!(f, "Finished({lease}): {:?}", report.outcome)
            }
            Self::Frame(frame) => write!(f, "{frame:?}"),
        }
    }
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Welcome { session, keep, abandon } => {
                write!(f, "Welcome {session}, keep {keep:?}, abandon {abandon:?}")
            }
            Self::Assign { assignment, .. } => write!(f, "Assign({})", assignment.lease),
            other => write!(f, "{other:?}"),
        }
    }
}

/// What is wrong with every machine of a world: for tests of the simulation itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A restarted agent starts again what it should adopt.
    StartsAgain,
    /// The journal forgets what was saved before the last write.
    LosesEntries,
}

/// One stream, with the frames in flight and the server's half at its end.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub up: VecDeque<Up>,
    pub down: VecDeque<Down>,
    pub session: Option<Session>,
}

/// A process of a job.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub assignment: Assignment,
    pub cancelled: bool,
    pub forsaken: bool,
}

/// A machine with an agent.
#[derive(Debug)]
pub(super) struct Machine {
    pub id: AgentId,
    pub up: bool,
    /// Its data folder is a copy of another one's, and nobody starts it any more.
    pub retired: bool,
    pub link: Option<Link>,
    pub leases: Leases,
    pub processes: BTreeMap<LeaseId, Process>,
    /// How each process of this machine ended, if its result was seen by the agent.
    pub results: BTreeMap<LeaseId, Outcome>,
    /// How often each lease's process was started.
    pub starts: BTreeMap<LeaseId, u32>,
    /// Assigns of streams that are gone, which may still come out of a buffer.
    pub(super) late: Vec<Down>,
    journal: BTreeMap<LeaseId, Entry>,
    handles: BTreeSet<LeaseId>,
    epoch: i64,
    /// The data folder's place and boot, and where its leases were taken.
    instance: String,
    home: Option<String>,
    fault: Option<Fault>,
}

impl Machine {
    pub(super) fn new(id: AgentId, place: &str, fault: Option<Fault>) -> Self {
        Self {
            id,
            up: true,
            retired: false,
            link: None,
            leases: Leases::default(),
            processes: BTreeMap::new(),
            results: BTreeMap::new(),
            starts: BTreeMap::new(),
            late: vec![],
            journal: BTreeMap::new(),
            handles: BTreeSet::new(),
            epoch: 0,
            instance: format!("{place} boot 0"),
            home: None,
            fault,
        }
    }

    /// Another machine, with a copy of this one's data folder that has been used a while.
    pub(super) fn copy(&self, place: &str) -> Self {
        let mut copy = Self::new(self.id, place, self.fault);
        copy.up = false;
        copy.journal.clone_from(&self.journal);
        copy.handles.clone_from(&self.handles);
        copy.home.clone_from(&self.home);
        copy.epoch = self.epoch + 10;
        copy
    }

    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    pub(super) fn journal(&self) -> impl Iterator<Item = &LeaseId> {
        self.journal.keys()
    }

    /// Opens a stream; Hello is built after the old one ended.
    pub(super) fn connect(&mut self, now: Millis) {
        self.cut(now);
        self.epoch += 1;
        let hello = Up::Hello { epoch: self.epoch, journal: self.leases.journal() };
        self.link = Some(Link { up: [hello].into(), ..Link::default() });
    }

    pub(super) fn cut(&mut self, now: Millis) {
        let Some(link) = self.link.take() else { return };
        let assigns = link.down.into_iter().filter(|frame| matches!(frame, Down::Assign { .. }));
        self.late.extend(assigns);
        if self.up {
            self.apply(Input::Disconnected, now, None);
        }
    }

    /// kill -9 of the agent; with `reboot`, of everything on the machine.
    pub(super) fn crash(&mut self, reboot: bool) {
        self.up = false;
        self.link = None;
        if reboot {
            self.processes.clear();
            self.instance.push('+');
        }
    }

    /// The agent starts again: it restores its journal and adopts what runs.
    pub(super) fn restart(&mut self, now: Millis) {
        self.up = true;
        let home = self.home.as_ref().is_none_or(|home| *home == self.instance);
        self.leases = Leases::restore(self.journal.values().cloned(), home);
        let leases = &self.leases;
        self.journal.retain(|lease, _| leases.entry(*lease).is_some());
        for entry in self.journal.values().cloned().collect::<Vec<_>>() {
            let lease = entry.assignment.lease;
            match entry.state {
                EntryState::Finished(_) => {}
                _ if self.fault == Some(Fault::StartsAgain) => self.start(entry.assignment),
                _ if self.processes.contains_key(&lease) => {}
                EntryState::Taken if !self.handles.contains(&lease) => self.start(entry.assignment),
                _ => {
                    let outcome = Outcome::failed(FailureKind::Infra, "the process is gone");
                    self.ended(lease, outcome, now, None);
                }
            }
        }
    }

    fn start(&mut self, assignment: Assignment) {
        let lease = assignment.lease;
        *self.starts.entry(lease).or_default() += 1;
        self.handles.insert(lease);
        self.processes.insert(lease, Process { assignment, cancelled: false, forsaken: false });
    }

    /// The agent learns that a process runs.
    pub(super) fn announce(&mut self, lease: LeaseId, now: Millis, crash_after: Option<usize>) {
        self.apply(Input::Started(lease), now, crash_after);
    }

    /// A process ends, and the agent learns it.
    pub(super) fn finish(
        &mut self,
        lease: LeaseId,
        outcome: Outcome,
        now: Millis,
        crash_after: Option<usize>,
    ) {
        if self.processes.remove(&lease).is_some() {
            self.results.insert(lease, outcome.clone());
            self.ended(lease, outcome, now, crash_after);
        }
    }

    fn ended(&mut self, lease: LeaseId, outcome: Outcome, now: Millis, crash_after: Option<usize>) {
        let report =
            Report { outcome, artifacts: vec![], log_lengths: [("main".to_owned(), 0)].into() };
        self.apply(Input::Ended(lease, report), now, crash_after);
    }

    /// Gives an input to the real lease code and carries its outputs out, in order; `crash_after` so many of them the
    /// agent dies.
    pub(super) fn apply(&mut self, input: Input, now: Millis, crash_after: Option<usize>) {
        if matches!(input, Input::Welcome { .. }) {
            self.home = Some(self.instance.clone());
        }
        for (number, output) in self.leases.apply(input, now).into_iter().enumerate() {
            if crash_after == Some(number) {
                self.crash(false);
                return;
            }
            self.perform(output);
        }
    }

    /// Time goes by. An exclusive job ends at once when nobody answered for too long.
    pub(super) fn apply_tick(&mut self, now: Millis) {
        self.apply(Input::Tick, now, None);
        let forsaken = self.processes.iter().filter(|(_, process)| process.forsaken);
        for lease in forsaken.map(|(&lease, _)| lease).collect::<Vec<_>>() {
            self.processes.remove(&lease);
            if self.up {
                let outcome = Outcome::failed(FailureKind::Lost, "nobody answered");
                self.ended(lease, outcome, now, None);
            }
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Save(lease) => {
                if self.fault == Some(Fault::LosesEntries) {
                    self.journal.clear();
                }
                if let Some(entry) = self.leases.entry(lease) {
                    self.journal.insert(lease, entry.clone());
                }
            }
            Output::Remove(lease) => {
                self.journal.remove(&lease);
                self.handles.remove(&lease);
            }
            Output::Send(frame) => {
                if let Some(link) = &mut self.link {
                    link.up.push_back(Up::Frame(frame));
                }
            }
            Output::Run(assignment) => self.start(*assignment),
            Output::Cancel(lease) => {
                if let Some(process) = self.processes.get_mut(&lease) {
                    process.cancelled = true;
                }
            }
            Output::Forsake(lease) => {
                if let Some(process) = self.processes.get_mut(&lease) {
                    process.forsaken = true;
                }
            }
            Output::Kill(lease) => {
                self.processes.remove(&lease);
            }
            Output::Exit => {}
        }
    }
}
