//! What an agent is to the core: what it offers, and how it fares.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Millis, id::AgentId};

/// What a machine offers, as its Hello says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Profile {
    pub arch: String,
    pub os: String,
    pub version: String,
    pub host: String,
    pub labels: BTreeMap<String, String>,
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub backends: BTreeMap<String, Offer>,
}

/// A backend of an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Offer {
    /// Jobs it runs at once; zero where it is unavailable.
    pub slots: u32,
    pub features: BTreeSet<String>,
    pub operations: BTreeSet<String>,
    /// Facts for a person: version, cgroup mode.
    pub facts: BTreeMap<String, String>,
    pub unavailable: Option<String>,
}

/// How a machine fares, as its last heartbeat said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    pub load_millis: u32,
    pub memory_available_bytes: u64,
    pub disk_available_bytes: u64,
}

/// Whether someone keeps an agent from taking jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Admission {
    #[default]
    Open,
    /// No new jobs until it is resumed, or until the time is over.
    Paused { note: String, resume_at: Option<Millis> },
    /// No new jobs; it stops when it has none left.
    Draining,
}

impl Admission {
    /// A pause that is over is open.
    #[must_use]
    pub fn at(self, now: Millis) -> Self {
        match self {
            Self::Paused { resume_at: Some(end), .. } if end <= now => Self::Open,
            other => other,
        }
    }
}

/// An agent as the scheduler and `explain` see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    pub id: AgentId,
    pub name: String,
    pub admission: Admission,
    /// It has an open session.
    pub online: bool,
    pub profile: Profile,
    pub load: Load,
    /// Leases it holds, by backend.
    pub busy: BTreeMap<String, u32>,
}

impl Agent {
    /// Jobs of a backend that it can take now.
    pub fn free(&self, backend: &str) -> u32 {
        let slots = self.profile.backends.get(backend).map_or(0, |offer| offer.slots);
        slots.saturating_sub(self.busy.get(backend).copied().unwrap_or(0))
    }
}
