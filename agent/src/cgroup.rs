//! What holds all processes of a shell job, so that all of them can be limited and ended: control groups where they are
//! writable, else a pid namespace, else no more than the process group. It knows no job and no log.

mod group;
mod host;

use std::io;

use serde::{Deserialize, Serialize};

pub use group::{Group, Version};
pub use host::{Host, Want};

/// What a job may use; zero is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub pids: u32,
}

impl Limits {
    /// What is not limited here is limited as there.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        fn set<T: Default + PartialEq>(own: T, other: T) -> T {
            if own == T::default() { other } else { own }
        }
        Self {
            cpu_millis: set(self.cpu_millis, other.cpu_millis),
            memory_bytes: set(self.memory_bytes, other.memory_bytes),
            pids: set(self.pids, other.pids),
        }
    }
}

/// How the processes of one job are held together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Containment {
    /// The first group is the one that is killed, the others carry limits.
    Groups { groups: Vec<Group> },
    /// A namespace whose first process takes all others with it.
    PidNamespace,
    /// Who leaves the process group is found only by the supervisor, as its orphan.
    ProcessGroup,
}

impl Containment {
    /// Makes what is needed before the first process starts.
    pub fn prepare(&self) -> io::Result<()> {
        self.groups().iter().try_for_each(Group::create)
    }

    /// Puts the calling thread in; what it starts from now on is in too.
    pub fn enter(&self) -> io::Result<()> {
        self.groups().iter().try_for_each(Group::enter)
    }

    /// Puts the calling thread back to where it was before [`Containment::enter`].
    pub fn leave(&self) -> io::Result<()> {
        self.groups().iter().try_for_each(Group::leave)
    }

    /// Kills all processes in it. True: none is left that it knows of.
    pub fn kill(&self) -> bool {
        self.groups().first().is_none_or(Group::kill)
    }

    /// Sends a signal to all processes in it, where it knows them.
    pub fn signal(&self, signal: rustix::process::Signal) -> bool {
        let group = self.groups().first();
        group.inspect(|group| group.signal(signal)).is_some()
    }

    /// How often the kernel ended a process in it for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.groups().iter().map(Group::oom_kills).sum()
    }

    /// Removes what [`Containment::prepare`] made; all its processes must be dead.
    pub fn remove(&self) {
        for group in self.groups() {
            group.remove();
        }
    }

    /// What comes before the program and its arguments.
    pub fn prefix(&self) -> &'static [&'static str] {
        match self {
            Self::PidNamespace => &host::UNSHARE,
            Self::Groups { .. } | Self::ProcessGroup => &[],
        }
    }

    fn groups(&self) -> &[Group] {
        match self {
            Self::Groups { groups } => groups,
            Self::PidNamespace | Self::ProcessGroup => &[],
        }
    }
}

#[cfg(test)]
mod tests;
