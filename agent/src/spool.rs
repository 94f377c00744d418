//! Reads a log's spool for sending: by offset, masked, never more than a chunk at once. The same offset gives the same
//! bytes each time, however the reads are cut.

use std::{fs, io, os::unix::fs::FileExt, path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};

use crate::{
    mask::Masker,
    run::{Folder, StageMark},
};

/// What one frame carries at most.
pub(crate) const CHUNK: u64 = 512 << 10;

/// One stream of one lease.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    path: PathBuf,
    masker: Arc<Masker>,
}

impl Spool {
    pub(crate) fn new(folder: &Folder, stream: &str, masker: Arc<Masker>) -> Self {
        Self { path: folder.spool(stream), masker }
    }

    /// Bytes that were written; a spool that is not there yet is empty.
    pub(crate) fn length(&self) -> io::Result<u64> {
        match fs::metadata(&self.path) {
            Ok(meta) => Ok(meta.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// The next bytes from `offset` on, at most `most`; fewer than there are where the rest may begin a secret, unless
    /// the log is known to end at `end`. Blocks.
    pub(crate) fn read(&self, offset: u64, most: u64, end: Option<u64>) -> io::Result<Bytes> {
        let written = end.map_or_else(|| self.length(), Ok)?;
        if written <= offset {
            return Ok(Bytes::new());
        }
        let lookback = self.masker.lookback() as u64;
        let from = offset.saturating_sub(lookback);
        // Looking ahead by as much decides over all that is wanted, unless the text ends before.
        let until = written.min(offset.saturating_add(most).saturating_add(lookback));
        let mut window = BytesMut::zeroed(usize::try_from(until - from).map_err(io::Error::other)?);
        fs::File::open(&self.path)?.read_exact_at(&mut window, from)?;
        let undecided = if end == Some(until) { 0 } else { self.masker.undecided(&window) as u64 };
        self.masker.mask(&mut window);
        let decided = (until - undecided).min(offset.saturating_add(most));
        if decided <= offset {
            return Ok(Bytes::new());
        }
        let range = |at: u64| usize::try_from(at - from).unwrap_or(usize::MAX);
        Ok(window.freeze().slice(range(offset)..range(decided)))
    }

    /// CRC-32 of the first `length` masked bytes, going on from a state of before. Blocks.
    pub(crate) fn crc(
        &self,
        mut state: Crc,
        length: u64,
        end: Option<u64>,
    ) -> io::Result<Option<Crc>> {
        while state.offset < length {
            let piece = self.read(state.offset, CHUNK.min(length - state.offset), end)?;
            if piece.is_empty() {
                return Ok(None);
            }
            state.add(&piece);
        }
        Ok(Some(state))
    }
}

/// The checksum of the bytes before an offset.
#[derive(Debug, Clone, Default)]
pub(crate) struct Crc {
    pub(crate) offset: u64,
    hasher: crc32fast::Hasher,
}

impl Crc {
    pub(crate) fn add(&mut self, piece: &[u8]) {
        self.hasher.update(piece);
        self.offset += piece.len() as u64;
    }

    pub(crate) fn value(&self) -> u32 {
        self.hasher.clone().finalize()
    }
}

/// The stage markers of a lease, read again only when there are more.
#[derive(Debug)]
pub(crate) struct Stages {
    path: Option<PathBuf>,
    size: u64,
    marks: Vec<StageMark>,
}

impl Stages {
    /// Of a folder, or none.
    pub(crate) fn new(folder: Option<&Folder>) -> Self {
        Self { path: folder.map(Folder::stages), size: 0, marks: vec![] }
    }

    /// Those from a number on that are written whole by now.
    pub(crate) fn from(&mut self, number: usize) -> &[StageMark] {
        if let Some(path) = &self.path
            && let Ok(meta) = fs::metadata(path)
            && meta.len() != self.size
            && let Ok(bytes) = fs::read(path)
        {
            self.size = bytes.len() as u64;
            let end = bytes.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
            let lines = bytes[..end].split(|&byte| byte == b'\n');
            self.marks = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        }
        self.marks.get(number..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::run::Secret;

    proptest! {
        #[test]
        fn any_cut_reads_the_same(
            text in "[abc]{1,300}", secret in "[abc]{1,9}", most in 1_u64..40, grown in 0.0_f64..1.0,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let folder = Folder::new(dir.path());
            folder.make_workspace().unwrap();
            folder.open_spool("main").unwrap();
            let secret = Secret { name: "s".into(), value: secret.into_bytes() };
            let masker = Arc::new(Masker::new(&[secret]));
            let spool = Spool::new(&folder, "main", masker.clone());
            let mut whole = text.clone().into_bytes();
            masker.mask(&mut whole);
            let end = text.len() as u64;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let first = (text.len() as f64 * grown) as usize;
            fs::write(folder.spool("main"), &text[..first]).unwrap();
            let mut out = vec![];
            loop {
                let piece = spool.read(out.len() as u64, most, None).unwrap();
                if piece.is_empty() { break; }
                prop_assert!(piece.len() as u64 <= most);
                out.extend_from_slice(&piece);
            }
            prop_assert_eq!(&out[..], &whole[..out.len()]);
            fs::write(folder.spool("main"), &text).unwrap();
            let held = out.len() as u64;
            let crc = spool.crc(Crc::default(), held, None).unwrap().unwrap();
            prop_assert_eq!(crc.value(), crc32fast::hash(&out));
            while (out.len() as u64) < end {
                let piece = spool.read(out.len() as u64, most, Some(end)).unwrap();
                prop_assert!(!piece.is_empty());
                out.extend_from_slice(&piece);
            }
            prop_assert_eq!(out, whole);
        }
    }
}
