//! How an attempt or a job ended. A failure of a job is data, never an `Err`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::Millis;

/// Who or what is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The job's own program.
    User,
    /// The machinery around it: image, checkout, disk, backend.
    Infra,
    /// Too long in the queue or in all.
    Timeout,
    /// No output for too long.
    Stalled,
    /// More memory than allowed.
    Oom,
    /// Its agent was lost.
    Lost,
    /// A needed job did not succeed.
    Dependency,
}

impl FailureKind {
    pub const ALL: [Self; 7] = [
        Self::User,
        Self::Infra,
        Self::Timeout,
        Self::Stalled,
        Self::Oom,
        Self::Lost,
        Self::Dependency,
    ];

    /// The word for it in the database, on the command line and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Infra => "infra",
            Self::Timeout => "timeout",
            Self::Stalled => "stalled",
            Self::Oom => "oom",
            Self::Lost => "lost",
            Self::Dependency => "dependency",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Outcome {
    Succeeded,
    Failed { kind: FailureKind, exit_code: Option<i32>, message: String },
    Cancelled { message: String },
}

impl Outcome {
    pub fn failed(kind: FailureKind, message: impl Into<String>) -> Self {
        Self::Failed { kind, exit_code: None, message: message.into() }
    }

    pub fn cancelled(message: impl Into<String>) -> Self {
        Self::Cancelled { message: message.into() }
    }

    pub const fn is_success(&self) -> bool {
        matches!(self, Self::Succeeded)
    }
}

/// When a failed job is tried again without being asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Attempts in a round at most.
    pub max_attempts: u32,
    /// Kinds that are tried again.
    pub on: BTreeSet<FailureKind>,
    /// Wait before the second attempt in milliseconds, doubled for each further one.
    pub backoff_ms: Millis,
}

impl RetryPolicy {
    /// The longest wait between two attempts.
    pub const MAX_BACKOFF_MS: Millis = 3_600_000;

    /// How long to wait before the attempt after `attempt`, or nothing when there is none.
    pub fn next(&self, kind: FailureKind, attempt: u32) -> Option<Millis> {
        if attempt >= self.max_attempts || !self.on.contains(&kind) {
            return None;
        }
        let doublings = attempt.saturating_sub(1).min(30);
        Some(self.backoff_ms.saturating_mul(1 << doublings).min(Self::MAX_BACKOFF_MS))
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            on: [FailureKind::Infra, FailureKind::Lost].into(),
            backoff_ms: 1_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_and_ends() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.next(FailureKind::Infra, 1), Some(1_000));
        assert_eq!(policy.next(FailureKind::Lost, 2), Some(2_000));
        assert_eq!(policy.next(FailureKind::Lost, 3), None);
        assert_eq!(policy.next(FailureKind::User, 1), None);
        let long = RetryPolicy { max_attempts: 99, ..policy };
        assert_eq!(long.next(FailureKind::Infra, 60), Some(RetryPolicy::MAX_BACKOFF_MS));
    }
}
