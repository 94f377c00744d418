//! The log on disk. One writer at a time; what is written is never changed.

use std::{
    fs::File,
    io::{self, Write},
};

use crate::run::is_no_room;

/// The file, and how much of it may still be filled.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    left: u64,
    cap: u64,
    full: bool,
    /// What the disk had no room for.
    waiting: Vec<u8>,
}

impl Spool {
    /// Goes on behind what is there.
    pub(super) fn open(file: File, cap: u64) -> io::Result<Self> {
        let left = cap.saturating_sub(file.metadata()?.len());
        Ok(Self { file, left, cap, full: false, waiting: vec![] })
    }

    /// Keeps what fits below the cap; the rest is dropped behind one visible line. What the disk has no room for waits
    /// here: nothing more is to be written before [`Spool::flush`] has brought it out.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.full {
            return Ok(());
        }
        let fits = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.append(&bytes[..fits])?;
        self.left -= fits as u64;
        if fits < bytes.len() {
            self.full = true;
            let cap = self.cap;
            let marker = format!("\n[kiln] the log is cut here: it is longer than {cap} bytes\n");
            self.append(marker.as_bytes())?;
        }
        Ok(())
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Tries again what waits.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.append(&waiting)
    }

    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.waiting.is_empty() && !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_no_room(&error) => break,
                Err(error) => return Err(error),
            }
        }
        self.waiting.extend(bytes);
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(path: &std::path::Path) -> File {
        File::options().append(true).create(true).open(path).unwrap()
    }

    /// A device on which every write finds no room.
    #[test]
    fn what_finds_no_room_waits_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main.log");
        let mut spool = Spool::open(opened(&path), 8).unwrap();
        spool.write(b"one ").unwrap();
        let disk = std::mem::replace(&mut spool.file, File::create("/dev/full").unwrap());
        spool.write(b"two ").unwrap();
        spool.write(b"three").unwrap();
        spool.flush().unwrap();
        assert!(spool.is_waiting());
        spool.file = disk;
        spool.flush().unwrap();
        assert!(!spool.is_waiting());
        let marker = "\n[kiln] the log is cut here: it is longer than 8 bytes\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("one two {marker}"));
    }

    #[test]
    fn marker_comes_once_and_only_where_something_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main.log");
        std::fs::write(&path, "checkout\n").unwrap();
        let mut spool = Spool::open(opened(&path), 14).unwrap();
        spool.write(b"abcde").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "checkout\nabcde");
        spool.write(b"f").unwrap();
        spool.write(b"g").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let marker = "\n[kiln] the log is cut here: it is longer than 14 bytes\n";
        assert_eq!(text, format!("checkout\nabcde{marker}"));
    }
}
