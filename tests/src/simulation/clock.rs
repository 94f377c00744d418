//! Time of the simulated world.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use kiln_core::Millis;
use kiln_server::clock::Clock;
use uuid::Uuid;

/// A clock that goes only when the world says so. Its wall time can jump, its elapsed time can't.
#[derive(Debug)]
pub(super) struct SimClock {
    elapsed: AtomicI64,
    skew: AtomicI64,
    ids: AtomicU64,
}

impl Default for SimClock {
    fn default() -> Self {
        Self {
            elapsed: AtomicI64::new(0),
            skew: AtomicI64::new(1_800_000_000_000),
            ids: AtomicU64::new(1),
        }
    }
}

impl SimClock {
    pub(super) fn pass(&self, millis: Millis) {
        self.elapsed.fetch_add(millis, Ordering::Relaxed);
    }

    pub(super) fn jump(&self, millis: Millis) {
        self.skew.fetch_add(millis, Ordering::Relaxed);
    }

    pub(super) fn elapsed_ms(&self) -> Millis {
        self.elapsed.load(Ordering::Relaxed)
    }
}

impl Clock for SimClock {
    fn now(&self) -> Millis {
        self.elapsed_ms() + self.skew.load(Ordering::Relaxed)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms().unsigned_abs())
    }

    fn id(&self) -> Uuid {
        Uuid::from_u128(u128::from(self.ids.fetch_add(1, Ordering::Relaxed)))
    }
}
