//! A build is a fold of its jobs, kept as counts; a plan is a valid submission expanded into jobs.

mod plan;

use serde::{Deserialize, Serialize};

use crate::job::Status;

pub use plan::{Plan, PlannedJob, PlannedNeed, plan};

/// Fold of the states of a build's jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildState {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl BuildState {
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// The word for it in the database, on the command line and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    pub const fn is_done(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How many jobs of a build are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub blocked: u32,
    pub queued: u32,
    pub leased: u32,
    pub running: u32,
    pub succeeded: u32,
    /// Failed, and the build fails with them.
    pub failed: u32,
    pub cancelled: u32,
    /// Failed, but allowed to.
    pub tolerated: u32,
}

impl Counts {
    fn of(&mut self, status: Status, allow_failure: bool) -> &mut u32 {
        match status {
            Status::Blocked => &mut self.blocked,
            Status::Queued => &mut self.queued,
            Status::Leased => &mut self.leased,
            Status::Running => &mut self.running,
            Status::Succeeded => &mut self.succeeded,
            Status::Failed if allow_failure => &mut self.tolerated,
            Status::Failed => &mut self.failed,
            Status::Cancelled => &mut self.cancelled,
        }
    }

    pub fn add(&mut self, status: Status, allow_failure: bool) {
        *self.of(status, allow_failure) += 1;
    }

    /// A job went from one state to another.
    pub fn moved(&mut self, from: Status, to: Status, allow_failure: bool) {
        let count = self.of(from, allow_failure);
        *count = count.saturating_sub(1);
        self.add(to, allow_failure);
    }

    pub fn total(&self) -> u32 {
        self.active() + self.done()
    }

    /// Jobs that are not done.
    pub fn active(&self) -> u32 {
        self.blocked + self.queued + self.leased + self.running
    }

    fn done(&self) -> u32 {
        self.succeeded + self.failed + self.cancelled + self.tolerated
    }

    /// The fold. A failure tells more than a cancel, so it wins.
    pub fn state(&self) -> BuildState {
        match self {
            counts if counts.active() > 0 => {
                if counts.leased + counts.running + counts.done() == 0 {
                    BuildState::Queued
                } else {
                    BuildState::Running
                }
            }
            counts if counts.failed > 0 => BuildState::Failed,
            counts if counts.cancelled > 0 => BuildState::Cancelled,
            _ => BuildState::Succeeded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_the_fold_of_the_counts() {
        use Status::{Blocked, Cancelled, Failed, Leased, Queued, Succeeded};

        let fold = |statuses: &[(Status, bool)]| {
            let mut counts = Counts::default();
            for &(status, allowed) in statuses {
                counts.add(status, allowed);
            }
            counts.state()
        };
        assert_eq!(fold(&[(Queued, false), (Blocked, false)]), BuildState::Queued);
        assert_eq!(fold(&[(Leased, false)]), BuildState::Running);
        assert_eq!(fold(&[(Succeeded, false), (Queued, false)]), BuildState::Running);
        assert_eq!(fold(&[(Succeeded, false), (Failed, true)]), BuildState::Succeeded);
        assert_eq!(fold(&[(Cancelled, false), (Failed, true)]), BuildState::Cancelled);
        assert_eq!(fold(&[(Cancelled, false), (Failed, false)]), BuildState::Failed);
    }

    #[test]
    fn words_round_trip() {
        for state in BuildState::ALL {
            assert_eq!(BuildState::parse(state.as_str()), Some(state));
        }
        for status in Status::ALL {
            assert_eq!(Status::parse(status.as_str()), Some(status));
        }
    }
}
