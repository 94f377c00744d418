//! What of the leases survives this process: a file to which each change is appended, the counter of Hellos, and where
//! the folder was when the server last let its agent in. It knows no session; what an entry means is for [`crate::lease`] to say.

mod records;

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use kiln_core::id::LeaseId;
use rustix::fs::FallocateFlags;
use sha2::{Digest, Sha256};

use crate::{
    clock,
    identity::hex,
    lease::Entry,
    run::{Folder, is_no_room, write_durably},
    workspace,
};
use records::{Content, Record};

const JOURNAL: &str = "journal";
const EPOCH: &str = "epoch";
const LOCK: &str = "lock";
const HOME: &str = "home";
/// A smaller file is not worth rewriting.
const COMPACT_BYTES: u64 = 4 << 20;
/// A file that grew by less since it was rewritten is not either.
const COMPACT_FACTOR: u64 = 4;

/// Room on the disk that the file keeps for itself, so that a job that fills the disk can still be ended, and told of.
const RESERVED_BYTES: u64 = 1 << 20;

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
    #[error("no randomness for an instance id")]
    Random,
}

impl Error {
    /// The same may succeed when there is room on the disk.
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_no_room(source))
    }
}

pub(crate) fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// The data folder of one agent process, locked for its life.
#[derive(Debug)]
pub struct Journal {
    data: PathBuf,
    log: Mutex<Log>,
    instance: String,
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
    /// Up to here there is room for it, whatever else fills the disk.
    reserved: u64,
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
        let instance = instance(&data)?;
        Ok(Self { data, log, instance, _lock: lock })
    }

    /// Names this folder on this machine in this boot: a copy has another one, as has the folder after a reboot.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Whether the leases were taken, and their processes started, in this very folder and boot.
    pub fn is_home(&self) -> Result<bool, Error> {
        let path = self.data.join(HOME);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text == self.instance),
            // No server has let it in yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    /// The server let this folder's agent in: what is taken from now on is taken here. Says whether that is new.
    pub fn settle(&self) -> Result<bool, Error> {
        let path = self.data.join(HOME);
        if fs::read_to_string(&path).is_ok_and(|text| text == self.instance) {
            return Ok(false);
        }
        at(&path, write_durably(&path, self.instance.as_bytes())).map(|()| true)
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
        if log.size > log.limit {
            log.compact()?;
        }
        log.reserve();
        Ok(())
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

/// A hash, so that the server learns nothing about the machine.
fn instance(data: &Path) -> Result<String, Error> {
    let folder = at(data, fs::metadata(data))?;
    let mut boot = clock::boot_id().into_bytes();
    if boot.is_empty() {
        // Nothing tells this machine from its copy: each process is on its own.
        boot = vec![0; 16];
        getrandom::fill(&mut boot).map_err(|_| Error::Random)?;
    }
    let place = format!(" {} {}", folder.dev(), folder.ino());
    let digest = Sha256::new().chain_update(boot).chain_update(place).finalize();
    Ok(hex(&digest[..16]))
}

impl Log {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        let file = at(&path, options.append(true).create(true).mode(0o600).open(&path))?;
        let known = BTreeSet::new();
        let mut log = Self { path, file, size: 0, limit: COMPACT_BYTES, known, reserved: 0 };
        log.compact()?;
        log.reserve();
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
        let mut content = self.read()?;
        let boot = clock::boot_id();
        if content.boot.as_ref().is_some_and(|written| *written != boot) {
            content.entries.values_mut().for_each(|entry| entry.interrupted = true);
        }
        let mut bytes = vec![];
        self.write(&Record::Boot(boot.into()), &mut bytes)?;
        for entry in content.entries.values() {
            self.write(&Record::Entry(Cow::Borrowed(entry)), &mut bytes)?;
        }
        match write_durably(&self.path, &bytes) {
            Ok(()) => {
                self.file = at(&self.path, OpenOptions::new().append(true).open(&self.path))?;
                self.size = bytes.len() as u64;
                self.reserved = 0;
            }
            // The old one says the same at greater length; nothing must follow half a record.
            Err(error) if is_no_room(&error) => {
                self.size = content.whole as u64;
                at(&self.path, self.file.set_len(self.size))?;
            }
            Err(error) => return at(&self.path, Err(error)),
        }
        self.limit = COMPACT_BYTES.max(self.size.saturating_mul(COMPACT_FACTOR));
        self.known = content.entries.into_keys().collect();
        Ok(())
    }

    /// Where it can't be done, appending may have to wait for room.
    fn reserve(&mut self) {
        if self.reserved < self.size + RESERVED_BYTES / 2 {
            let flags = FallocateFlags::KEEP_SIZE;
            if rustix::fs::fallocate(&self.file, flags, self.size, RESERVED_BYTES).is_ok() {
                self.reserved = self.size + RESERVED_BYTES;
            }
        }
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
