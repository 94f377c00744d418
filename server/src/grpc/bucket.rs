//! Leaky buckets by key: each holds so much, and fills again at a rate. Bounded: a bucket that is full again is forgotten.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Keys at most. Where even more take at once, all are forgotten: a flood of keys must not cost memory.
const CAPACITY: usize = 100_000;

/// Of each key is kept the moment at which its bucket will be full again.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    /// What refills one.
    interval: Duration,
    /// What refills all of it.
    depth: Duration,
    full_at: Mutex<HashMap<K, Duration>>,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Buckets of `burst` that refill `rate` in each `per`. None where the rate is zero: no limit.
    pub(super) fn new(rate: u32, per: Duration, burst: u32) -> Option<Self> {
        let interval = per.checked_div(rate)?;
        Some(Self { interval, depth: interval * burst.max(1), full_at: Mutex::default() })
    }

    /// Takes one; where there is none, says how long until there is.
    pub(super) fn take(&self, key: K, now: Duration) -> Result<(), Duration> {
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = buckets.get(&key).copied().unwrap_or_default().max(now) + self.interval;
        let wait = full_at.saturating_sub(now + self.depth);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        if buckets.len() >= CAPACITY {
            buckets.retain(|_, full_at| *full_at > now);
            if buckets.len() >= CAPACITY {
                buckets.clear();
            }
        }
        buckets.insert(key, full_at);
        Ok(())
    }

    /// How long until there is one to take.
    pub(super) fn wait(&self, key: &K, now: Duration) -> Option<Duration> {
        let buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = buckets.get(key).copied().unwrap_or_default().max(now) + self.interval;
        Some(full_at.saturating_sub(now + self.depth)).filter(|wait| *wait > Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let buckets = Buckets::new(10, Duration::from_secs(1), 3).unwrap();
        for _ in 0..3 {
            assert_eq!(buckets.wait(&"a", ms(5_000)), None);
            assert_eq!(buckets.take("a", ms(5_000)), Ok(()));
        }
        assert_eq!(buckets.take("a", ms(5_000)), Err(ms(100)));
        assert_eq!(buckets.wait(&"a", ms(5_060)), Some(ms(40)));
        assert_eq!(buckets.take("b", ms(5_000)), Ok(()), "another key has its own");
        assert_eq!(buckets.take("a", ms(5_100)), Ok(()));
        assert_eq!(buckets.take("a", ms(5_100)), Err(ms(100)));
        for _ in 0..3 {
            assert_eq!(buckets.take("a", ms(9_000)), Ok(()), "it fills up to its burst");
        }
        assert!(buckets.take("a", ms(9_000)).is_err());
    }

    #[test]
    fn a_flood_of_keys_costs_a_bounded_memory() {
        let buckets = Buckets::new(1, Duration::from_hours(1), 1).unwrap();
        for key in 0..3 * CAPACITY {
            buckets.take(key, ms(key as u64)).unwrap();
        }
        assert!(buckets.full_at.lock().unwrap().len() <= CAPACITY);
    }

    #[test]
    fn no_rate_is_no_limit() {
        assert!(Buckets::<u8>::new(0, Duration::from_secs(1), 1).is_none());
    }
}
