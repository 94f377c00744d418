//! `[limits]`: how much one caller, and all of them, may ask for at once.

use serde::{Deserialize, Serialize};

use super::Invalid;

/// A field that is zero sets no limit, but for those of connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Calls a second with one token, on average.
    pub calls_per_second: u32,
    /// Calls with one token at once, after a rest.
    pub calls_burst: u32,
    /// Submissions a minute with one token; as many at once, after a rest.
    pub submissions_per_minute: u32,
    /// Streams with one token at once: watched builds, followed logs, uploads, downloads.
    pub streams: u32,
    /// Failed logins a minute from one address (IPv6: one /64 network).
    pub failures_per_minute: u32,
    /// Frames a second in the session of one agent; beyond, they are read more slowly.
    pub frames_per_second: u32,
    /// Connections at once.
    pub connections: u32,
    /// Connections from one address (IPv6: one /64 network) at once.
    pub connections_per_peer: u32,
    /// Milliseconds within which a connection must carry its first call.
    pub first_call_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            calls_per_second: 1_000,
            calls_burst: 5_000,
            submissions_per_minute: 6_000,
            streams: 1_000,
            failures_per_minute: 60,
            frames_per_second: 10_000,
            connections: 10_000,
            // A farm behind one address: an agent has two.
            connections_per_peer: 4_000,
            first_call_ms: 30_000,
        }
    }
}

impl Limits {
    /// No limit on what a token may call: for measurements.
    pub fn unlimited() -> Self {
        Self {
            calls_per_second: 0,
            submissions_per_minute: 0,
            streams: 0,
            frames_per_second: 0,
            ..Self::default()
        }
    }

    pub(super) fn check(&self) -> Vec<Invalid> {
        let mut found = vec![];
        let mut refuse = |wrong: bool, field, message: &str| {
            if wrong {
                found.push(Invalid::new(field, message));
            }
        };
        refuse(
            self.calls_per_second > 0 && self.calls_burst == 0,
            "limits.calls_burst",
            "must be at least 1; set limits.calls_per_second to 0 for no limit",
        );
        refuse(self.connections == 0, "limits.connections", "must be at least 1");
        refuse(self.connections_per_peer == 0, "limits.connections_per_peer", "must be at least 1");
        refuse(self.first_call_ms == 0, "limits.first_call_ms", "must be at least 1");
        found
    }
}
