//! What of the leases survives this process: a file to which each change is appended, and the counter of Hellos. It
//! knows no session; what an entry means is for [`crate::lease`] to say.

mod records;

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use kiln_core::id::LeaseId;

use crate::{
    lease::Entry,
    run::{Folder, write_durably},
    workspace,
};
use records::{Content, Record};

const JOURNAL: &str = "journal";
const EPOCH: &str = "epoch";
const LOCK: &str = "lock";
/// A smaller file is not worth rewriting.
const COMPACT_BYTES: u64 = 4 << 20;
/// A file that grew by less since it was rewritten is not either.
const COMPACT_FACTOR: u64 = 4;

/// Why the data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: another agent uses this data folder; stop it, or give this one a folder of its own", .0.display())]
    Locked(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not a record of the journal: {source}", path.display())]
    Record { path: PathBuf, source: serde_json::Error },
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
    log: Mutex<Log>,
    _lock: File,
}

/// The file that grows.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    /// It is rewritten when it is larger.
    limit: u64,
    /// Leases whose entries are in it.
    known: BTreeSet<LeaseId>,
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
        let log = Mutex::new(Log::open(data.join(JOURNAL))?);
        Ok(Self { data, log, _lock: lock })
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
        let content = self.log().read()?;
        let leases = self.data.join("leases");
        for found in at(&leases, fs::read_dir(&leases))? {
            let name = at(&leases, found)?.file_name();
            if let Some(lease) = name.to_str().and_then(|name| name.parse().ok())
                && !content.entries.contains_key(&lease)
            {
                self.discard(lease);
            }
        }
        Ok(content.entries.into_values().collect())
    }

    /// Keeps these entries and forgets these leases; durable when it returns. What is only forgotten need not be: an
    /// entry that a crash brings back is said again, and acknowledged again.
    pub fn save(&self, entries: &[Entry], gone: &[LeaseId]) -> Result<(), Error> {
        let mut log = self.log();
        let mut bytes = vec![];
        for &lease in gone.iter().filter(|lease| log.known.contains(lease)) {
            log.write(&Record::Gone(lease), &mut bytes)?;
        }
        for entry in entries {
            let lease = entry.assignment.lease;
            let record = if log.known.contains(&lease) && !gone.contains(&lease) {
                Record::State(lease, Cow::Borrowed(&entry.state))
            } else {
                Record::Entry(Cow::Borrowed(entry))
            };
            log.write(&record, &mut bytes)?;
        }
        log.append(&bytes, !entries.is_empty())?;
        for lease in gone {
            log.known.remove(lease);
        }
        log.known.extend(entries.iter().map(|entry| entry.assignment.lease));
        if log.size > log.limit { log.compact() } else { Ok(()) }
    }

    /// Removes the lease's folder with all that is in it. What can't be removed is tried again at the next start.
    pub fn discard(&self, lease: LeaseId) {
        let folder = self.folder(lease);
        if let Err(error) = workspace::remove_tree(folder.path()) {
            tracing::warn!(%lease, %error, path = %folder.path().display(), "lease folder stays");
        }
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        let file = at(&path, options.append(true).create(true).mode(0o600).open(&path))?;
        let mut log = Self { path, file, size: 0, limit: COMPACT_BYTES, known: BTreeSet::new() };
        log.compact()?;
        Ok(log)
    }

    fn read(&self) -> Result<Content, Error> {
        let bytes = at(&self.path, fs::read(&self.path))?;
        let content = Content::read(&bytes);
        let content =
            content.map_err(|source| Error::Record { path: self.path.clone(), source })?;
        if content.whole < bytes.len() {
            let (path, torn) = (self.path.display(), bytes.len() - content.whole);
            tracing::warn!(%path, torn, "the end of the journal was not written whole; it is left out");
        }
        Ok(content)
    }

    /// Puts a file in its place that holds what counts, and no more.
    fn compact(&mut self) -> Result<(), Error> {
        let content = self.read()?;
        let mut bytes = vec![];
        for entry in content.entries.values() {
            self.write(&Record::Entry(Cow::Borrowed(entry)), &mut bytes)?;
        }
        at(&self.path, write_durably(&self.path, &bytes))?;
        self.file = at(&self.path, OpenOptions::new().append(true).open(&self.path))?;
        self.size = bytes.len() as u64;
        self.limit = COMPACT_BYTES.max(self.size.saturating_mul(COMPACT_FACTOR));
        self.known = content.entries.into_keys().collect();
        Ok(())
    }

    fn write(&self, record: &Record<'_>, into: &mut Vec<u8>) -> Result<(), Error> {
        record.write(into).map_err(|source| Error::Record { path: self.path.clone(), source })
    }

    fn append(&mut self, bytes: &[u8], durably: bool) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(bytes);
        if written.is_err() {
            // What follows half a record is never read. Where this fails too, the caller gives up all the same.
            let _ = self.file.set_len(self.size);
        }
        at(&self.path, written)?;
        self.size += bytes.len() as u64;
        if durably { at(&self.path, self.file.sync_data()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
