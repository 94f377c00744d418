//! An answer that is good enough for a while, for what many ask and what costs something.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The last answer, and when it was given.
#[derive(Debug)]
pub(crate) struct Recent<T>(Mutex<Option<(Duration, T)>>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Recent<T> {
    /// The last answer, where it is younger than this.
    pub(crate) fn get(&self, now: Duration, fresh: Duration) -> Option<T> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(at, _)| now.saturating_sub(*at) < fresh).map(|(_, t)| t.clone())
    }

    pub(crate) fn put(&self, now: Duration, answer: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, answer));
    }
}
