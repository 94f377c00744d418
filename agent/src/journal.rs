//! What of the leases survives this process: one folder per lease with an entry that is replaced as a whole, and the
//! counter of Hellos. It knows no session; what an entry means is for [`crate::lease`] to say.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use kiln_core::id::LeaseId;

use crate::{
    lease::Entry,
    run::{Folder, write_durably},
    workspace,
};

const ENTRY: &str = "entry.json";
const EPOCH: &str = "epoch";
const LOCK: &str = "lock";

/// Why the data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: another agent uses this data folder; stop it, or give this one a folder of its own", .0.display())]
    Locked(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not an entry of the journal: {source}", path.display())]
    Entry { path: PathBuf, source: serde_json::Error },
    #[error("{}: not a number; restore the file, or enrol the agent anew", .0.display())]
    Epoch(PathBuf),
}

pub(crate) fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// The data folder of one agent process, locked for its life.
#[derive(Debug)]
pub struct Journal {
    data: PathBuf,
    _lock: File,
}

impl Journal {
    pub fn open(data: &Path) -> Result<Self, Error> {
        let leases = data.join("leases");
        at(&leases, fs::DirBuilder::new().recursive(true).mode(0o700).create(&leases))?;
        let path = data.join(LOCK);
        let mut options = OpenOptions::new();
        let lock = at(&path, options.write(true).create(true).mode(0o600).open(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::Locked(data.to_owned())),
            Err(fs::TryLockError::Error(source)) => return Err(Error::Io { path, source }),
        }
        // Supervisors get absolute paths, wherever this process was started.
        let data = at(data, data.canonicalize())?;
        Ok(Self { data, _lock: lock })
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The next number of a Hello; grows over restarts too.
    pub fn next_epoch(&self) -> Result<i64, Error> {
        let path = self.data.join(EPOCH);
        let last = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<i64>().map_err(|_| Error::Epoch(path.clone()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(source) => return Err(Error::Io { path, source }),
        };
        let next = last.saturating_add(1);
        at(&path, write_durably(&path, next.to_string().as_bytes()))?;
        Ok(next)
    }

    pub fn folder(&self, lease: LeaseId) -> Folder {
        Folder::new(self.data.join("leases").join(lease.to_string()))
    }

    /// All entries. Folders without one are left of leases that were never taken, or that are done: they go.
    pub fn restore(&self) -> Result<Vec<Entry>, Error> {
        let leases = self.data.join("leases");
        let mut entries = vec![];
        for found in at(&leases, fs::read_dir(&leases))? {
            let found = at(&leases, found)?;
            let Some(lease) = found.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let path = found.path().join(ENTRY);
            match fs::read(&path) {
                Ok(bytes) => entries.push(
                    serde_json::from_slice(&bytes)
                        .map_err(|source| Error::Entry { path, source })?,
                ),
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.discard(lease),
                Err(source) => return Err(Error::Io { path, source }),
            }
        }
        Ok(entries)
    }

    /// Keeps the entry; durable when it returns.
    pub fn save(&self, entry: &Entry) -> Result<(), Error> {
        let folder = self.folder(entry.assignment.lease);
        let path = folder.path().join(ENTRY);
        let is_new = !path.exists();
        if is_new {
            at(folder.path(), folder.create())?;
        }
        let bytes = serde_json::to_vec(entry)
            .map_err(|source| Error::Entry { path: path.clone(), source })?;
        at(&path, write_durably(&path, &bytes))?;
        if is_new {
            let leases = self.data.join("leases");
            at(&leases, File::open(&leases).and_then(|dir| dir.sync_all()))?;
        }
        Ok(())
    }

    /// Forgets the lease; its folder stays until it is discarded. An entry that a crash brings back is said again, and
    /// acknowledged again.
    pub fn forget(&self, lease: LeaseId) -> Result<(), Error> {
        let path = self.folder(lease).path().join(ENTRY);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Io { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Removes the lease's folder with all that is in it. What can't be removed is tried again at the next start.
    pub fn discard(&self, lease: LeaseId) {
        let folder = self.folder(lease);
        if let Err(error) = workspace::remove_tree(folder.path()) {
            tracing::warn!(%lease, %error, path = %folder.path().display(), "lease folder stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_core::{
        id::{BuildId, JobId},
        session::Assignment,
        spec::JobSpec,
    };
    use uuid::Uuid;

    use super::*;
    use crate::lease::EntryState;

    fn entry(n: u128, state: EntryState) -> Entry {
        let uuid = Uuid::from_u128(n);
        let assignment = Assignment {
            lease: LeaseId::from_uuid(uuid),
            job: JobId::from_uuid(uuid),
            build: BuildId::from_uuid(uuid),
            project: "default".into(),
            attempt: 1,
            spec: JobSpec::default(),
            inputs: vec![],
            exclusive: false,
        };
        Entry { assignment, state }
    }

    #[test]
    fn entries_survive_and_leave() {
        let dir = tempfile::tempdir().unwrap();
        let taken = entry(1, EntryState::Taken);
        let running = entry(1, EntryState::Running);
        {
            let journal = Journal::open(dir.path()).unwrap();
            journal.save(&taken).unwrap();
            journal.save(&entry(2, EntryState::Taken)).unwrap();
            journal.save(&running).unwrap();
            journal.forget(entry(2, EntryState::Taken).assignment.lease).unwrap();
        }
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.restore().unwrap(), [running]);
        let left = fs::read_dir(dir.path().join("leases")).unwrap().count();
        assert_eq!(left, 1, "the folder of the forgotten lease is removed");
    }

    #[test]
    fn the_epoch_grows_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().next_epoch().unwrap(), 1);
        assert_eq!(Journal::open(dir.path()).unwrap().next_epoch().unwrap(), 2);
        fs::write(dir.path().join(EPOCH), "x").unwrap();
        assert!(matches!(
            Journal::open(dir.path()).unwrap().next_epoch().unwrap_err(),
            Error::Epoch(_)
        ));
    }

    #[test]
    fn a_data_folder_has_one_agent() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Journal::open(dir.path()).unwrap();
        assert!(matches!(Journal::open(dir.path()).unwrap_err(), Error::Locked(_)));
    }
}
