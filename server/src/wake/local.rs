//! Within one process: a map from topic to those who wait for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::Notify;

use super::{Topic, Wake};

type Waiters = HashMap<Topic, Vec<Weak<Notify>>>;

/// Wakes within one process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Local {
    waiters: Arc<Mutex<Waiters>>,
}

/// Coalesced hints; dropped, it is forgotten.
#[derive(Debug)]
pub struct Subscription {
    notify: Arc<Notify>,
    topics: Vec<Topic>,
    waiters: Arc<Mutex<Waiters>>,
}

impl Subscription {
    /// Returns when something was published since the last return.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiters = lock(&self.waiters);
        let own = Arc::as_ptr(&self.notify);
        for topic in &self.topics {
            if let Some(list) = waiters.get_mut(topic) {
                list.retain(|waiter| waiter.as_ptr() != own);
                if list.is_empty() {
                    waiters.remove(topic);
                }
            }
        }
    }
}

impl Wake for Local {
    fn publish(&self, topics: &[Topic]) {
        let waiters = lock(&self.waiters);
        if topics.contains(&Topic::All) {
            waiters
                .values()
                .flatten()
                .filter_map(Weak::upgrade)
                .for_each(|waiter| waiter.notify_one());
            return;
        }
        for list in topics.iter().filter_map(|topic| waiters.get(topic)) {
            list.iter().filter_map(Weak::upgrade).for_each(|waiter| waiter.notify_one());
        }
    }

    fn tell_others(&self, _: &[Topic]) {}

    fn subscribe(&self, topics: &[Topic]) -> Subscription {
        let notify = Arc::new(Notify::new());
        let mut waiters = lock(&self.waiters);
        for &topic in topics {
            waiters.entry(topic).or_default().push(Arc::downgrade(&notify));
        }
        Subscription { notify, topics: topics.to_vec(), waiters: Arc::clone(&self.waiters) }
    }
}

/// Nothing panics while it holds this lock; a poisoned map is still whole.
fn lock(waiters: &Mutex<Waiters>) -> MutexGuard<'_, Waiters> {
    waiters.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use kiln_core::id::BuildId;
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn hints_are_coalesced_and_reach_only_their_topic() {
        let wake = Local::default();
        let build = Topic::Build(BuildId::from_uuid(Uuid::from_u128(1)));
        let mine = wake.subscribe(&[build]);
        wake.publish(&[Topic::Queue]);
        assert!(futures::FutureExt::now_or_never(mine.changed()).is_none());
        wake.publish(&[build]);
        wake.publish(&[build]);
        mine.changed().await;
        assert!(futures::FutureExt::now_or_never(mine.changed()).is_none());
        wake.publish(&[Topic::All]);
        mine.changed().await;
        drop(mine);
        assert!(lock(&wake.waiters).is_empty());
    }
}
