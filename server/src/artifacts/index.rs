//! The rows of the blobs: which are stored, and what holds them.

use std::fmt::Debug;

use async_trait::async_trait;
use kiln_core::{Millis, id::LeaseId};

use crate::store::Result;

/// Lower-case hexadecimal SHA-256 of a blob's content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    /// None where the text is not 64 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let fine = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == 64 && text.bytes().all(fine)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A stored blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRow {
    pub digest: Digest,
    pub size: u64,
    /// Name of the object that holds it. No other upload ever writes or removes an object of this name, so that one
    /// who removes it late removes nothing that was stored since.
    pub object: String,
    pub stored_at: Millis,
}

/// What holds a blob for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// The lease that uploaded it. It ends with the lease: what the report names is referenced from then on.
    Lease(LeaseId),
    /// A submission to come, until this moment.
    Submission,
}

/// A reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub digest: Digest,
    pub holder: Holder,
    pub size: u64,
    /// None: with its holder.
    pub expires_at: Option<Millis>,
}

/// The rows of the blobs. Reads see committed rows only.
#[async_trait]
pub trait BlobIndex: Debug + Send + Sync {
    /// The identity of the store called `name`: the one that is recorded, else `fresh`, which is recorded where given.
    async fn identity(&self, name: &str, fresh: Option<&str>) -> Result<Option<String>>;

    async fn blob(&self, digest: &Digest) -> Result<Option<BlobRow>>;
    /// Pins a blob, for longer where it is pinned by this holder already; false where it is not stored.
    async fn pin(&self, pin: &Pin) -> Result<bool>;
    /// Records the name of an object that is about to be written, so that a crash leaves none that nobody knows of.
    async fn announce(&self, object: &str, now: Millis) -> Result<()>;
    /// Records a blob with its announced object and pins it. Where another upload was quicker, its object stays the
    /// blob's and this one is doomed. False where this object was doomed meanwhile: nothing is recorded.
    async fn store(&self, blob: &BlobRow, pin: &Pin) -> Result<bool>;
    /// Pins of a lease.
    async fn pins_of(&self, lease: LeaseId) -> Result<Vec<Pin>>;
    /// Leases behind `after` that pin anything, in order.
    async fn pinning(&self, after: Option<LeaseId>, limit: u32) -> Result<Vec<LeaseId>>;
    async fn unpin(&self, lease: LeaseId) -> Result<()>;
    /// Forgets at most `limit` blobs that were stored before and are neither pinned at `now` nor named by an artifact
    /// or a job's source, dooms their objects, and returns them. Forgets the pins that expired.
    async fn take_unreferenced(
        &self,
        stored_before: Millis,
        now: Millis,
        limit: u32,
    ) -> Result<Vec<BlobRow>>;
    /// Dooms the objects that were announced before and are still no blob's; returns at most `limit` doomed ones.
    async fn doomed(&self, announced_before: Millis, limit: u32) -> Result<Vec<String>>;
    /// Forgets doomed objects, which are removed by now.
    async fn forget(&self, objects: &[String]) -> Result<()>;
    /// Forgets artifacts and sources of builds that ended before, at most so many builds; returns how many.
    async fn expire(&self, ended_before: Millis, limit: u32) -> Result<u64>;
}
