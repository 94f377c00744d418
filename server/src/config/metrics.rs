//! `[metrics]`: who may read what this server counts.

use serde::{Deserialize, Serialize};

/// The page `/metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Anyone who reaches the server may read it. Without, it takes a token of a reader of the whole farm.
    pub open: bool,
}
