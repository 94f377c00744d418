//! When a call is made again, and after what wait. Only calls that can't do a thing twice come here.

use std::{error::Error as _, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::tls::Fault;

/// A server that asks for a longer pause than this is not waited for.
const MAX_ASKED: Duration = Duration::from_mins(1);

/// How often and how soon to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Attempts in all; for a stream, since it last made progress.
    pub attempts: u32,
    /// Upper bound of the first wait; it doubles with each attempt.
    pub base: Duration,
    /// Upper bound of every wait.
    pub cap: Duration,
}

impl Policy {
    /// For single calls: six attempts within about three seconds.
    pub const CALL: Self =
        Self { attempts: 6, base: Duration::from_millis(100), cap: Duration::from_secs(5) };
    /// For streams: long enough for a server to be replaced.
    pub const STREAM: Self =
        Self { attempts: 40, base: Duration::from_millis(100), cap: Duration::from_secs(10) };

    /// Full jitter: anything between nothing and the bound, so that clients cut off together do not come back together.
    fn wait(&self, attempt: u32, random: u64) -> Duration {
        let doubled = self.base.saturating_mul(1 << attempt.saturating_sub(1).min(20));
        let bound = u64::try_from(doubled.min(self.cap).as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(random % bound.saturating_add(1))
    }
}

/// Counts attempts and sleeps between them.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: Policy,
    failed: u32,
}

impl Backoff {
    pub(crate) const fn new(policy: Policy) -> Self {
        Self { policy, failed: 0 }
    }

    /// A stream moved on: what failed before counts no more.
    pub(crate) const fn progress(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt, or says that there is none.
    pub(crate) async fn wait(&mut self, status: Option<&Status>) -> bool {
        self.failed += 1;
        if self.failed >= self.policy.attempts {
            return false;
        }
        let jitter = self.policy.wait(self.failed, random());
        let asked = status.and_then(asked_pause).unwrap_or_default();
        if asked > MAX_ASKED {
            return false;
        }
        tokio::time::sleep(asked + jitter).await;
        true
    }
}

/// The pause that the server asks for.
fn asked_pause(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// The same call may succeed later.
pub(crate) fn is_transient(status: &Status) -> bool {
    (matches!(status.code(), Code::Unavailable | Code::ResourceExhausted) || is_cut(status))
        && Fault::find(status).is_none()
}

/// The connection broke under the call. Only a status made on this side has a source; one that came over the wire has none.
fn is_cut(status: &Status) -> bool {
    status.source().is_some()
        && matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled)
}

/// A stream may go on: also where the end of the connection looks like an answer without a status.
pub(crate) fn is_resumable(status: &Status) -> bool {
    is_transient(status)
        || (matches!(status.code(), Code::Unknown | Code::Aborted) && Fault::find(status).is_none())
}

fn random() -> u64 {
    // Without randomness all waits are the same, which only makes the jitter worse.
    getrandom::u64().unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_under_a_doubling_bound() {
        let policy =
            Policy { attempts: 9, base: Duration::from_millis(100), cap: Duration::from_secs(1) };
        assert_eq!(policy.wait(1, 100_000), Duration::from_millis(100));
        assert_eq!(policy.wait(1, 100_001), Duration::ZERO);
        assert_eq!(policy.wait(2, 200_000), Duration::from_millis(200));
        assert_eq!(policy.wait(30, 1_000_000), Duration::from_secs(1));
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        assert!(is_transient(&Status::unavailable("")));
        assert!(is_transient(&Status::resource_exhausted("")));
        assert!(!is_transient(&Status::unknown("said the server")));
        assert!(!is_transient(&Status::invalid_argument("")));
        assert!(is_resumable(&Status::unknown("ended without a status")));
        assert!(!is_resumable(&Status::not_found("")));
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_end_and_progress_renews_them() {
        let mut backoff = Backoff::new(Policy { attempts: 3, ..Policy::CALL });
        assert!(backoff.wait(None).await && backoff.wait(None).await);
        assert!(!backoff.wait(None).await);
        backoff.progress();
        assert!(backoff.wait(None).await);
    }
}
