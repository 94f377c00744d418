//! What a supervisor leaves: how the job ended, and what that means for its outcome.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use kiln_core::outcome::FailureKind;
use serde::{Deserialize, Serialize};

use super::{EXIT_FILE, signals};
use crate::{backend::Failure, run::Folder};

/// More than any exit file needs: its message is cut to a quarter.
const RESERVED_BYTES: usize = 4096;

/// The content of `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub ending: Ending,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The kernel ended a process of it for want of memory.
    pub oom: bool,
    pub message: String,
}

/// Why it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By itself.
    Exited,
    /// It printed nothing for too long.
    Stalled,
    /// The agent asked for it.
    Cancelled,
    /// No word of the server came in time, and the job must not run without.
    Forsaken,
    /// Its program can't be started.
    NotStarted,
    /// What is around it failed: no space for the log, no engine.
    Broken,
}

impl Exit {
    pub fn new(ending: Ending, message: impl Into<String>) -> Self {
        Self { ending, code: None, signal: None, oom: false, message: message.into() }
    }

    /// The job's outcome; why it was cancelled the executor knows better.
    pub fn into_result(self) -> Result<(), Failure> {
        let exit_code = self.exit_code();
        let failure = |kind, message: String| Err(Failure { kind, exit_code, message });
        match self.ending {
            Ending::Exited if self.code == Some(0) => Ok(()),
            Ending::Exited if self.is_out_of_memory() => {
                failure(FailureKind::Oom, "killed: it used more memory than it may".to_owned())
            }
            Ending::Exited => failure(FailureKind::User, self.words()),
            Ending::Stalled => failure(FailureKind::Stalled, self.message),
            Ending::Cancelled | Ending::NotStarted => failure(FailureKind::User, self.message),
            Ending::Forsaken => failure(FailureKind::Lost, self.message),
            Ending::Broken => failure(FailureKind::Infra, self.message),
        }
    }

    /// A helper process that ran out of memory in a job that went on is no reason; nor is a plain kill.
    fn is_out_of_memory(&self) -> bool {
        self.oom && (self.signal == Some(9) || self.code == Some(137))
    }

    /// A signal counts as shells and engines count it: 128 and its number.
    fn exit_code(&self) -> Option<i32> {
        self.code.or_else(|| self.signal.map(|signal| 128 + signal))
    }

    fn words(&self) -> String {
        match self.exit_code() {
            Some(126) => "exit code 126 (not executable)".to_owned(),
            Some(127) => "exit code 127 (program not found)".to_owned(),
            Some(code) => match (signals::name(code - 128), self.signal) {
                (Some(name), _) => format!("exit code {code} ({name})"),
                (None, Some(signal)) => format!("exit code {code} (signal {signal})"),
                (None, None) => format!("exit code {code}"),
            },
            None => self.message.clone(),
        }
    }
}

/// Reads the file where it is there; it is whole then.
pub(super) fn read(dir: &Path) -> io::Result<Option<Exit>> {
    match std::fs::read(dir.join(EXIT_FILE)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Space on the disk for the exit file, taken before the job can fill it.
#[derive(Debug)]
pub(super) struct Reserved {
    file: File,
    temp: PathBuf,
    target: PathBuf,
}

impl Reserved {
    pub(super) fn take(dir: &Path) -> io::Result<Self> {
        let temp = dir.join("exit.new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        file.write_all(&[b' '; RESERVED_BYTES])?;
        Ok(Self { file, temp, target: dir.join(EXIT_FILE) })
    }

    /// Durable when it returns, with the rest of the folder.
    pub(super) fn write(mut self, exit: &Exit, folder: &Folder) -> io::Result<()> {
        let mut exit = exit.clone();
        exit.message = exit.message.chars().take(RESERVED_BYTES / 4 / 4).collect();
        let bytes = serde_json::to_vec(&exit)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&bytes)?;
        // Blanks behind the value are JSON too, so a file system that copies on write costs no more space.
        self.file.sync_all()?;
        std::fs::rename(&self.temp, &self.target)?;
        folder.settle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(exit: Exit) -> (FailureKind, String) {
        let failure = exit.into_result().unwrap_err();
        (failure.kind, failure.message)
    }

    #[test]
    fn endings_become_outcomes() {
        let exited = |code, signal, oom| Exit {
            code,
            signal,
            oom,
            ..Exit::new(Ending::Exited, String::new())
        };
        assert_eq!(exited(Some(0), None, true).into_result(), Ok(()));
        assert_eq!(kind(exited(Some(3), None, true)).0, FailureKind::User);
        assert_eq!(kind(exited(None, Some(9), true)).0, FailureKind::Oom);
        assert_eq!(kind(exited(Some(137), None, true)).0, FailureKind::Oom);
        let killed = exited(None, Some(9), false).into_result().unwrap_err();
        let wanted = (FailureKind::User, Some(137), "exit code 137 (SIGKILL)");
        assert_eq!((killed.kind, killed.exit_code, killed.message.as_str()), wanted);
        assert_eq!(kind(exited(None, Some(40), false)).1, "exit code 168 (signal 40)");
        assert_eq!(kind(exited(Some(139), None, false)).1, "exit code 139 (SIGSEGV)");
        assert_eq!(kind(exited(Some(3), None, false)).1, "exit code 3");
        assert_eq!(kind(Exit::new(Ending::Broken, "x")).0, FailureKind::Infra);
    }

    #[test]
    fn long_messages_fit_into_the_reserved_space() {
        let dir = tempfile::tempdir().unwrap();
        let reserved = Reserved::take(dir.path()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), None, "nothing is to be read before it is whole");
        reserved
            .write(&Exit::new(Ending::Broken, "\u{1}".repeat(100_000)), &Folder::new(dir.path()))
            .unwrap();
        let size = std::fs::metadata(dir.path().join(EXIT_FILE)).unwrap().len();
        assert_eq!(size, RESERVED_BYTES as u64);
        assert_eq!(read(dir.path()).unwrap().unwrap().ending, Ending::Broken);
    }
}
