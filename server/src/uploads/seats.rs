//! One writer at a time for each thing that is uploaded. The newest takes the seat: the older one is most likely a
//! connection that died unnoticed, and it is waited for, so that two never write at once.

use std::{
    collections::HashMap,
    fmt::Debug,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Chair {
    free: Arc<Semaphore>,
    /// Of who sits there, or who is next.
    replaced: CancellationToken,
    /// Those who sit or wait.
    users: usize,
}

/// The seats of one kind of thing. Cheap to clone.
#[derive(Debug)]
pub struct Seats<K: Eq + Hash> {
    chairs: Arc<Mutex<HashMap<K, Chair>>>,
}

impl<K: Eq + Hash> Clone for Seats<K> {
    fn clone(&self) -> Self {
        Self { chairs: Arc::clone(&self.chairs) }
    }
}

impl<K: Eq + Hash> Default for Seats<K> {
    fn default() -> Self {
        Self { chairs: Arc::default() }
    }
}

/// The right to write; given up when dropped.
#[derive(Debug)]
pub struct Seat<K: Eq + Hash> {
    key: K,
    seats: Seats<K>,
    replaced: CancellationToken,
    permit: Option<OwnedSemaphorePermit>,
}

impl<K: Eq + Hash + Clone> Seats<K> {
    /// Asks who sits there to leave, and waits until that happened. None: someone newer came meanwhile.
    pub async fn take(&self, key: &K) -> Option<Seat<K>> {
        let replaced = CancellationToken::new();
        let free = {
            let mut chairs = self.lock();
            let chair = chairs.entry(key.clone()).or_insert_with(|| Chair {
                free: Arc::new(Semaphore::new(1)),
                replaced: replaced.clone(),
                users: 0,
            });
            if chair.users > 0 {
                chair.replaced.cancel();
                chair.replaced = replaced.clone();
            }
            chair.users += 1;
            Arc::clone(&chair.free)
        };
        let mut seat = Seat { key: key.clone(), seats: self.clone(), replaced, permit: None };
        tokio::select! {
            biased;
            () = seat.replaced.cancelled() => return None,
            permit = free.acquire_owned() => seat.permit = permit.ok(),
        }
        Some(seat)
    }
}

impl<K: Eq + Hash> Seats<K> {
    /// Nothing panics while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Chair>> {
        self.chairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Seat<K> {
    /// Returns when a newer writer asks for the seat.
    pub async fn replaced(&self) {
        self.replaced.cancelled().await;
    }

    pub fn is_replaced(&self) -> bool {
        self.replaced.is_cancelled()
    }
}

impl<K: Eq + Hash> Drop for Seat<K> {
    fn drop(&mut self) {
        self.permit = None;
        let mut chairs = self.seats.lock();
        if let Some(chair) = chairs.get_mut(&self.key) {
            chair.users -= 1;
            if chair.users == 0 {
                chairs.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_takes_the_seat_after_the_older_left() {
        let seats = Seats::<u8>::default();
        let first = seats.take(&1).await.unwrap();
        let other = seats.take(&2).await.unwrap();
        let second = {
            let seats = seats.clone();
            let mut waiting = Box::pin(async move { seats.take(&1).await });
            assert!(futures::poll!(&mut waiting).is_pending());
            waiting
        };
        first.replaced().await;
        assert!(!other.is_replaced());
        let mut third = Box::pin(seats.take(&1));
        assert!(futures::poll!(&mut third).is_pending());
        assert!(second.await.is_none(), "the second was replaced before it sat");
        drop(first);
        let third = third.await.unwrap();
        assert!(!third.is_replaced());
        drop((third, other));
        assert!(seats.lock().is_empty());
    }
}
