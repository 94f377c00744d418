//! The lease folder: who writes which file, and how. Everything in it is 0600 or 0700.
//!
//! What a job is begun with has to outlast the agent's process, not the machine: after a restart of the machine nothing
//! of the job lives, and the journal knows that it may have begun. Only at its end all of the folder is made durable.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use kiln_core::Millis;
use serde::{Deserialize, Serialize};

/// The longest message of the agent itself in a log.
const MAX_SAY_BYTES: usize = 64 << 10;

/// A line of `stages.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageMark {
    pub name: String,
    pub time_ms: Millis,
    /// In the main stream.
    pub offset: u64,
}

/// Paths and small files of one lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A folder that may not be there yet: it is made by who first writes into it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn workspace(&self) -> PathBuf {
        self.path.join("workspace")
    }

    /// The workspace, for a backend whose jobs work in it.
    pub fn make_workspace(&self) -> io::Result<PathBuf> {
        let path = self.workspace();
        private_dir(&path)?;
        Ok(path)
    }

    fn heard(&self) -> PathBuf {
        self.path.join("heard")
    }

    /// Passes on that the server answered, to a supervisor whose job must not run without. `mark` differs each time.
    pub fn hear(&self, mark: Millis) -> io::Result<()> {
        match std::fs::write(self.heard(), mark.to_string()) {
            // Where nothing was begun nobody listens.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written,
        }
    }

    /// What was passed on last.
    pub fn last_heard(&self) -> Option<String> {
        std::fs::read_to_string(self.heard()).ok()
    }

    pub fn spool_dir(&self) -> PathBuf {
        self.path.join("spool")
    }

    pub fn spool(&self, stream: &str) -> PathBuf {
        self.spool_dir().join(format!("{stream}.log"))
    }

    /// Opens a spool to write behind what is there.
    pub(crate) fn open_spool(&self, stream: &str) -> io::Result<File> {
        private_dir(&self.spool_dir())?;
        append(&self.spool(stream))
    }

    pub fn stages(&self) -> PathBuf {
        self.path.join("stages.jsonl")
    }

    /// The stages so far; one that was cut off in the middle is left out.
    pub(crate) fn marks(&self) -> io::Result<Vec<StageMark>> {
        let text = match std::fs::read_to_string(self.stages()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            text => text?,
        };
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Scratch space of the job, its HOME and TMPDIR.
    pub fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }

    pub(crate) fn make_tmp(&self) -> io::Result<PathBuf> {
        let path = self.tmp();
        private_dir(&path)?;
        Ok(path)
    }

    fn handle(&self) -> PathBuf {
        self.path.join("handle")
    }

    /// What a backend or a supervisor left for `adopt`; nothing: the job was never begun.
    pub fn remembered(&self) -> io::Result<Option<String>> {
        for path in [self.handle(), self.path.join(crate::supervisor::IDENTITY_FILE)] {
            match std::fs::read_to_string(path) {
                Ok(text) => return Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    pub(super) fn remember(&self, handle: &str) -> io::Result<()> {
        private_dir(&self.path)?;
        replace(&self.handle(), handle.as_bytes())
    }

    /// Makes its files durable: how the job ended, and what is needed to tell.
    pub(crate) fn settle(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                File::open(entry.path())?.sync_all()?;
            }
        }
        File::open(&self.path)?.sync_all()?;
        File::open(self.path.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()
    }

    pub(super) fn mark(&self, name: &str, time_ms: Millis) -> io::Result<()> {
        let offset = std::fs::metadata(self.spool("main")).map_or(0, |meta| meta.len());
        let mut line = serde_json::to_vec(&StageMark { name: name.to_owned(), time_ms, offset })?;
        line.push(b'\n');
        private_dir(&self.path)?;
        append(&self.stages())?.write_all(&line)
    }

    pub(super) fn say(&self, text: &str) -> io::Result<()> {
        let mut end = text.len().min(MAX_SAY_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut line = text[..end].to_owned();
        if !line.ends_with('\n') {
            line.push('\n');
        }
        self.open_spool("main")?.write_all(line.as_bytes())
    }
}

/// The disk, or this user's part of it, is full: the same write may succeed later.
pub(crate) fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes a folder that nobody else can look into; one that is there stays.
fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Replaces a file as a whole, for who reads it on the same boot of the machine.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_with(path, bytes, |_| Ok(()))
}

fn replace_with(
    path: &Path,
    bytes: &[u8],
    sync: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let temp = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
    file.write_all(bytes)?;
    sync(&file)?;
    std::fs::rename(&temp, path)
}

/// Replaces a file as a whole: after a crash it is the old one or the new one.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_with(path, bytes, File::sync_all)?;
    File::open(path.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()
}
