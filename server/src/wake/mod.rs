//! Hints that something changed. Each can be lost: rows are the truth, a sweep looks anyway.

pub mod local;
pub mod postgres;

use kiln_core::id::{AgentId, BuildId, LeaseId};

pub use local::{Local, Subscription};

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Jobs became claimable, or room for some was made.
    Queue,
    /// Events were appended to a build.
    Build(BuildId),
    /// Leases, admission or sessions of an agent changed.
    Agent(AgentId),
    /// Bytes or the end of a log arrived.
    Log(LeaseId),
    /// Anything may have changed: wakes every subscription.
    All,
}

/// Publish and subscribe.
pub trait Wake: std::fmt::Debug + Send + Sync {
    /// Never blocks, never fails.
    fn publish(&self, topics: &[Topic]);
    /// To the other processes only: this one knows already. Never blocks, never fails.
    fn tell_others(&self, topics: &[Topic]);
    /// Hints about any of these topics from now on, coalesced: `changed` returns at least once after the last of them.
    fn subscribe(&self, topics: &[Topic]) -> Subscription;
}
