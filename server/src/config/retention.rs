//! `[retention]`: how long what ended is kept.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Invalid;

/// A hundred years: beyond, a number is a mistake.
const MAX_DAYS: u32 = 36_500;

const DAY: Duration = Duration::from_hours(24);

fn span(days: u32) -> Option<Duration> {
    (days > 0).then(|| DAY * days)
}

/// Days that each kind of thing is kept. Zero: for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Days after which a build that ended is removed, with its jobs, events, logs and artifacts. Zero: never.
    pub build_days: u32,
    /// Days after which a record of the audit log is removed. Zero: never.
    pub audit_days: u32,
    /// Days after which the logs of a build that ended are removed. Zero: never.
    pub log_days: u32,
    /// Days after which the artifacts of a build that ended are removed. Zero: never.
    pub artifact_days: u32,
}

impl Retention {
    /// For how long a build that ended is kept; nothing is for ever.
    pub fn builds(&self) -> Option<Duration> {
        span(self.build_days)
    }

    /// The same of a record of the audit log.
    pub fn audit(&self) -> Option<Duration> {
        span(self.audit_days)
    }

    /// For how long the logs of a build that ended are kept; nothing is for ever.
    pub fn logs(&self) -> Option<Duration> {
        span(self.log_days)
    }

    /// The same of its artifacts.
    pub fn artifacts(&self) -> Option<Duration> {
        span(self.artifact_days)
    }

    pub(super) fn check(&self) -> Vec<Invalid> {
        let days = [
            ("retention.build_days", self.build_days),
            ("retention.audit_days", self.audit_days),
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
