//! `[retention]`: how long what ended is kept.

use serde::{Deserialize, Serialize};

use super::Invalid;

/// A hundred years: beyond, a number is a mistake.
const MAX_DAYS: u32 = 36_500;

/// Days after the end of a build. Zero: for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Days after which the logs of a build that ended are removed. Zero: never.
    pub log_days: u32,
    /// Days after which the artifacts of a build that ended are removed. Zero: never.
    pub artifact_days: u32,
}

impl Retention {
    pub(super) fn check(&self) -> Vec<Invalid> {
        let days = [
            ("retention.log_days", self.log_days),
            ("retention.artifact_days", self.artifact_days),
        ];
        days.into_iter()
            .filter(|(_, days)| *days > MAX_DAYS)
            .map(|(field, _)| {
                Invalid::new(field, format!("must be at most {MAX_DAYS}; 0 keeps for ever"))
            })
            .collect()
    }
}
