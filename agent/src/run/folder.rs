//! The lease folder: who writes which file, and how. Everything in it is 0600 or 0700.

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
    /// A folder that may not be there yet; see [`Folder::create`].
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Makes the folder and those in it.
    pub fn create(&self) -> io::Result<()> {
        for dir in [self.path.clone(), self.workspace(), self.spool_dir(), self.tmp()] {
            private_dir(&dir)?;
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn workspace(&self) -> PathBuf {
        self.path.join("workspace")
    }

    fn heard(&self) -> PathBuf {
        self.path.join("heard")
    }

    /// Passes on that the server answered, to a supervisor whose job must not run without. `mark` differs each time.
    pub fn hear(&self, mark: Millis) -> io::Result<()> {
        std::fs::write(self.heard(), mark.to_string())
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

    pub fn stages(&self) -> PathBuf {
        self.path.join("stages.jsonl")
    }

    /// Scratch space of the job, its HOME and TMPDIR.
    pub fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
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
        write_durably(&self.handle(), handle.as_bytes())?;
        // Nothing before this had to last, so that the folder itself may not either.
        File::open(self.path.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()
    }

    pub(super) fn mark(&self, name: &str, time_ms: Millis) -> io::Result<()> {
        let offset = std::fs::metadata(self.spool("main")).map_or(0, |meta| meta.len());
        let mut line = serde_json::to_vec(&StageMark { name: name.to_owned(), time_ms, offset })?;
        line.push(b'\n');
        append(&self.stages(), &line)
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
        append(&self.spool("main"), line.as_bytes())
    }
}

/// Makes a folder that nobody else can look into; one that is there stays.
fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)?.write_all(bytes)
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
