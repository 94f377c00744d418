//! Garbage: blobs that nothing holds any more, objects that never became a blob, and parts that nobody goes on with.
//!
//! A blob's row goes first and dooms its object; then the object goes, then its name. Replicas may do it at once: the
//! object of a blob that is stored again has another name.

use std::{
    fs,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use kiln_core::Millis;
use object_store::ObjectStoreExt;

use super::Artifacts;
use crate::uploads::{Error, Result, blocking};

const PAGE: u32 = 200;
/// A report may still be on its way into the rows.
const GRACE: Millis = 10 * 60 * 1000;
/// An upload that was not gone on with for this long is given up, and so is an object that is being written.
const PART_AGE: Millis = 24 * 3_600_000;

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    pub blobs: usize,
    pub bytes: u64,
    pub objects: usize,
    pub parts: usize,
}

impl Artifacts {
    /// Removes what nothing holds. Can be repeated at any point.
    pub async fn collect(&self) -> Result<Collected> {
        self.unpin_ended().await?;
        let now = self.parts.clock.now();
        let mut collected = Collected::default();
        loop {
            let taken = self.parts.index.take_unreferenced(now - GRACE, now, PAGE).await?;
            if taken.is_empty() {
                break;
            }
            collected.blobs += taken.len();
            collected.bytes += taken.iter().map(|blob| blob.size).sum::<u64>();
        }
        loop {
            let doomed = self.parts.index.doomed(now - PART_AGE, PAGE).await?;
            if doomed.is_empty() {
                break;
            }
            collected.objects += doomed.len();
            self.remove(&doomed).await?;
        }
        let folder = self.parts.folder.clone();
        collected.parts = blocking(move || remove_old(&folder, now - PART_AGE)).await?;
        Ok(collected)
    }

    /// Forgets artifacts and sources of builds that ended longer ago than `age`; returns of how many builds. What
    /// they held is collected later.
    pub async fn expire(&self, age: Duration) -> Result<u64> {
        let age = Millis::try_from(age.as_millis()).unwrap_or(Millis::MAX);
        let before = self.parts.clock.now().saturating_sub(age);
        let mut builds = 0;
        loop {
            match self.parts.index.expire(before, PAGE).await? {
                0 => return Ok(builds),
                more => builds += more,
            }
        }
    }

    /// A lease that ended pins nothing: what its report named is held by artifacts.
    async fn unpin_ended(&self) -> Result<()> {
        let mut after = None;
        loop {
            let leases = self.parts.index.pinning(after, PAGE).await?;
            let Some(&last) = leases.last() else { return Ok(()) };
            after = Some(last);
            for lease in leases {
                let row = self.parts.rows.lease(lease).await?;
                let until = self.parts.clock.now() - GRACE;
                if row.is_none_or(|row| !row.phase.is_open() && row.ended_at < Some(until)) {
                    self.parts.index.unpin(lease).await?;
                }
            }
        }
    }

    /// Removes doomed objects, then their names: a crash between the two repeats it.
    pub(super) async fn remove(&self, doomed: &[String]) -> Result<()> {
        for name in doomed {
            let path = self.object(name);
            match self.parts.objects.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(Error::object("remove", &path, e)),
            }
        }
        Ok(self.parts.index.forget(doomed).await?)
    }
}

fn remove_old(folder: &Path, before: Millis) -> Result<usize> {
    let sweep = || {
        let mut removed = 0;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let changed = entry.metadata()?.modified()?.duration_since(UNIX_EPOCH);
            if changed.is_ok_and(|since| since.as_millis() < before.unsigned_abs().into()) {
                fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    };
    sweep().map_err(|e| Error::io("sweep", &folder.display(), e))
}
