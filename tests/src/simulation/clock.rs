//! Time and chance of the simulated world.

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

/// SplitMix64: small, good enough, and the same on every machine.
#[derive(Debug, Clone)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to `bound` - 1.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap_or(0)
    }

    /// True in `percent` of 100 cases.
    pub(super) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { from.get(self.below(from.len())).cloned() }
    }
}
