//! The only place that reads a clock or makes an id.

use std::{
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use kiln_core::Millis;
use uuid::Uuid;

/// Time and fresh ids; the simulation has its own.
pub trait Clock: Debug + Send + Sync {
    /// Milliseconds since the epoch, for rows. May jump.
    fn now(&self) -> Millis;
    /// Since some moment of this process, for durations. Never jumps.
    fn elapsed(&self) -> Duration;
    /// A UUID v7, growing within this process.
    fn id(&self) -> Uuid;
}

pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the Clock")]
    fn now(&self) -> Millis {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn id(&self) -> Uuid {
        Uuid::now_v7()
    }
}
