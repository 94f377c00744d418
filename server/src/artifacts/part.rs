//! A part of an upload: a local file that grows until the blob is whole. It survives the connection and the server,
//! so that the next attempt goes on where this one stopped. Everything here blocks.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::uploads::{Error, Result};

/// The file, how much it holds and the digest of that.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    pub(super) length: u64,
}

impl Part {
    /// Opens or makes it. What is there already is read once for its digest; more than `size` can't be right.
    pub(super) fn open(path: PathBuf, size: u64) -> Result<Self> {
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let mut file = options.open(&path)?;
            if file.metadata()?.len() > size {
                file.set_len(0)?;
            }
            let (mut hasher, mut length) = (Sha256::new(), 0);
            let mut buffer = vec![0; 256 << 10];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok((file, hasher, length)),
                    read => {
                        hasher.update(&buffer[..read]);
                        length += read as u64;
                    }
                }
            }
        };
        let (file, hasher, length) = open().map_err(|e| Error::io("open", &path.display(), e))?;
        Ok(Self { path, file, hasher, length })
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path.display(), e))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Lower-case hexadecimal SHA-256 of what it holds.
    pub(super) fn digest(&self) -> String {
        use std::fmt::Write as _;
        self.hasher.clone().finalize().iter().fold(String::new(), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        })
    }

    /// At most `limit` bytes from `offset` on.
    pub(super) fn read(&mut self, offset: u64, limit: u64) -> Result<Bytes> {
        let mut bytes = Vec::new();
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| (&self.file).take(limit).read_to_end(&mut bytes))
            .map_err(|e| Error::io("read", &self.path.display(), e))?;
        Ok(bytes.into())
    }

    pub(super) fn remove(self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.path.display(), e))
            }
            _ => Ok(()),
        }
    }
}
