//! The rows of the blobs in memory, for tests and the simulation.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use kiln_core::{Millis, id::LeaseId};

use super::index::{BlobIndex, BlobRow, Digest, Holder, Pin};
use crate::store::Result;

#[derive(Debug)]
struct Object {
    announced_at: Millis,
    doomed: bool,
}

#[derive(Debug, Default)]
struct Tables {
    identities: BTreeMap<String, String>,
    blobs: BTreeMap<Digest, BlobRow>,
    objects: BTreeMap<String, Object>,
    pins: BTreeMap<(Digest, Holder), Pin>,
    referenced: BTreeSet<Digest>,
}

/// Rows in memory.
#[derive(Debug, Default)]
pub struct MemoryBlobs {
    tables: Mutex<Tables>,
}

impl MemoryBlobs {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stands for an artifact or a source that names the blob.
    pub fn refer(&self, digest: Digest, is_referenced: bool) {
        let referenced = &mut self.tables().referenced;
        if is_referenced {
            referenced.insert(digest)
        } else {
            referenced.remove(&digest)
        };
    }
}

impl Tables {
    fn pin(&mut self, pin: &Pin) -> bool {
        let stored = self.blobs.contains_key(&pin.digest);
        if stored {
            let held =
                self.pins.entry((pin.digest.clone(), pin.holder)).or_insert_with(|| pin.clone());
            held.expires_at = held.expires_at.zip(pin.expires_at).map(|(a, b)| a.max(b));
        }
        stored
    }

    fn doom(&mut self, object: &str) {
        let doomed = Object { announced_at: 0, doomed: true };
        self.objects.insert(object.to_owned(), doomed);
    }

    fn is_free(&self, blob: &BlobRow, stored_before: Millis) -> bool {
        blob.stored_at < stored_before
            && !self.referenced.contains(&blob.digest)
            && self.pins.keys().all(|(digest, _)| *digest != blob.digest)
    }
}

#[async_trait]
impl BlobIndex for MemoryBlobs {
    async fn identity(&self, name: &str, fresh: Option<&str>) -> Result<Option<String>> {
        let mut tables = self.tables();
        if let Some(fresh) = fresh {
            tables.identities.entry(name.to_owned()).or_insert_with(|| fresh.to_owned());
        }
        Ok(tables.identities.get(name).cloned())
    }

    async fn blob(&self, digest: &Digest) -> Result<Option<BlobRow>> {
        Ok(self.tables().blobs.get(digest).cloned())
    }

    async fn pin(&self, pin: &Pin) -> Result<bool> {
        Ok(self.tables().pin(pin))
    }

    async fn announce(&self, object: &str, now: Millis) -> Result<()> {
        let announced = Object { announced_at: now, doomed: false };
        self.tables().objects.insert(object.to_owned(), announced);
        Ok(())
    }

    async fn store(&self, blob: &BlobRow, pin: &Pin) -> Result<bool> {
        let mut tables = self.tables();
        if tables.objects.get(&blob.object).is_none_or(|object| object.doomed) {
            return Ok(false);
        }
        if tables.blobs.contains_key(&blob.digest) {
            tables.doom(&blob.object);
        } else {
            tables.objects.remove(&blob.object);
            tables.blobs.insert(blob.digest.clone(), blob.clone());
        }
        Ok(tables.pin(pin))
    }

    async fn pins_of(&self, lease: LeaseId) -> Result<Vec<Pin>> {
        let tables = self.tables();
        let of = |pin: &&Pin| pin.holder == Holder::Lease(lease);
        Ok(tables.pins.values().filter(of).cloned().collect())
    }

    async fn pinning(&self, after: Option<LeaseId>, limit: u32) -> Result<Vec<LeaseId>> {
        let tables = self.tables();
        let leases = tables.pins.keys().filter_map(|(_, holder)| match holder {
            Holder::Lease(lease) => Some(*lease),
            Holder::Submission => None,
        });
        let leases: BTreeSet<_> = leases.filter(|lease| Some(*lease) > after).collect();
        Ok(leases.into_iter().take(limit as usize).collect())
    }

    async fn unpin(&self, lease: LeaseId) -> Result<()> {
        self.tables().pins.retain(|(_, holder), _| *holder != Holder::Lease(lease));
        Ok(())
    }

    async fn take_unreferenced(
        &self,
        stored_before: Millis,
        now: Millis,
        limit: u32,
    ) -> Result<Vec<BlobRow>> {
        let mut tables = self.tables();
        tables.pins.retain(|_, pin| pin.expires_at.is_none_or(|at| at > now));
        let free = tables.blobs.values().filter(|blob| tables.is_free(blob, stored_before));
        let free: Vec<_> = free.take(limit as usize).cloned().collect();
        for blob in &free {
            tables.blobs.remove(&blob.digest);
            tables.doom(&blob.object);
        }
        Ok(free)
    }

    async fn doomed(&self, announced_before: Millis, limit: u32) -> Result<Vec<String>> {
        let mut tables = self.tables();
        for object in tables.objects.values_mut() {
            object.doomed |= object.announced_at < announced_before;
        }
        let doomed = tables.objects.iter().filter(|(_, object)| object.doomed);
        Ok(doomed.map(|(name, _)| name.clone()).take(limit as usize).collect())
    }

    async fn forget(&self, objects: &[String]) -> Result<()> {
        self.tables().objects.retain(|name, object| !(object.doomed && objects.contains(name)));
        Ok(())
    }

    async fn expire(&self, _ended_before: Millis, _limit: u32) -> Result<u64> {
        Ok(0)
    }
}
