//! The log on disk. One writer at a time; what is written is never changed.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// The file, and how much of it may still be filled.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    left: u64,
    cap: u64,
    full: bool,
}

impl Spool {
    /// Goes on behind what is there.
    pub(super) fn open(path: &Path, cap: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let left = cap.saturating_sub(file.metadata()?.len());
        Ok(Self { file, left, cap, full: false })
    }

    /// Keeps what fits. The rest is dropped behind one visible line.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.full {
            return Ok(());
        }
        let fits = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.file.write_all(&bytes[..fits])?;
        self.left -= fits as u64;
        if fits < bytes.len() {
            self.full = true;
            let cap = self.cap;
            write!(self.file, "\n[kiln] the log is cut here: it is longer than {cap} bytes\n")?;
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marker_comes_once_and_only_where_something_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main.log");
        std::fs::write(&path, "checkout\n").unwrap();
        let mut spool = Spool::open(&path, 14).unwrap();
        spool.write(b"abcde").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "checkout\nabcde");
        spool.write(b"f").unwrap();
        spool.write(b"g").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let marker = "\n[kiln] the log is cut here: it is longer than 14 bytes\n";
        assert_eq!(text, format!("checkout\nabcde{marker}"));
    }
}
