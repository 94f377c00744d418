//! Logs as files of one server: a raw file that grows by `pwrite`, replaced by a compressed one when it is sealed.
//!
//! A crash leaves bytes behind the index at most: nobody reads them and the next append overwrites them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use kiln_core::id::LeaseId;

use super::{
    Error, LogStore, Result,
    frames::{self, FRAME, Packer},
    index::{Key, LogIndex, LogRow, Place},
};
use crate::uploads::blocking;

/// Logs under one folder.
#[derive(Debug)]
pub struct FsStore {
    root: PathBuf,
    index: Arc<dyn LogIndex>,
}

impl FsStore {
    /// The store in this folder, which is made where it is missing. Refused where it is another database's.
    pub async fn open(root: PathBuf, index: Arc<dyn LogIndex>, fresh: &str) -> Result<Self> {
        let path = root.join("identity");
        let recorded = index.identity("logs", None).await?;
        let found = {
            let (root, path, recorded) = (root.clone(), path.clone(), recorded.clone());
            let fresh = fresh.to_owned();
            blocking(move || {
                read_identity(&root, &path, recorded.is_none().then_some(fresh.as_str()))
            })
            .await?
        };
        let recorded = match recorded {
            Some(recorded) => recorded,
            None => index.identity("logs", Some(&found)).await?.unwrap_or_default(),
        };
        if found == recorded {
            Ok(Self { root, index })
        } else {
            Err(Error::Foreign { name: "log", found, recorded })
        }
    }

    fn folder(&self, key: &Key) -> PathBuf {
        self.root.join(folder_name(key.lease))
    }

    fn raw(&self, key: &Key) -> PathBuf {
        self.root.join(file_names(key.lease, &key.stream).0)
    }

    fn packed(&self, key: &Key) -> PathBuf {
        self.root.join(file_names(key.lease, &key.stream).1)
    }
}

/// The last two digits of the id spread the leases over 256 folders (the first ones are the time).
fn folder_name(lease: LeaseId) -> PathBuf {
    let lease = lease.uuid().simple().to_string();
    Path::new(&lease[30..]).join(&lease)
}

/// Where a stream is below the root: as it grows, and compressed.
pub(crate) fn file_names(lease: LeaseId, stream: &str) -> (PathBuf, PathBuf) {
    let folder = folder_name(lease);
    (folder.join(format!("{stream}.log")), folder.join(format!("{stream}.log.zst")))
}

#[async_trait]
impl LogStore for FsStore {
    async fn check(&self, row: &LogRow) -> Result<()> {
        if row.size == 0 || row.packed {
            return Ok(());
        }
        let segments = self.index.segments(&row.key, row.tail, 2).await?;
        let (path, size) = (self.raw(&row.key), row.size);
        blocking(move || {
            let file = open_raw(&path, size)?;
            for segment in segments {
                let length = usize::try_from(segment.length).unwrap_or(usize::MAX);
                let bytes = read_exact(&file, segment.start, length)
                    .map_err(|e| Error::io("read", &path.display(), e))?;
                if crc32fast::hash(&bytes) != segment.crc {
                    return Err(Error::Corrupt { what: path.display().to_string() });
                }
            }
            Ok(())
        })
        .await
    }

    async fn write(&self, row: &LogRow, bytes: &[Bytes]) -> Result<Place> {
        let (path, size, bytes) = (self.raw(&row.key), row.size, bytes.to_vec());
        blocking(move || {
            let file = if size == 0 { create(&path)? } else { open_raw(&path, size)? };
            write(&file, size, &bytes).map_err(|e| Error::io("write", &path.display(), e))
        })
        .await?;
        Ok(Place::File)
    }

    async fn settle(&self, _row: &LogRow) -> Result<()> {
        Ok(())
    }

    async fn read(&self, row: &LogRow, offset: u64, limit: usize) -> Result<Bytes> {
        let left = usize::try_from(row.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let limit = limit.min(left);
        if limit == 0 {
            return Ok(Bytes::new());
        }
        let (raw, packed, first) = (self.raw(&row.key), self.packed(&row.key), row.packed);
        blocking(move || {
            let read_raw = || read_exact(&File::open(&raw)?, offset, limit);
            let read_packed = || frames::read(&File::open(&packed)?, offset, limit);
            // Between the reading of the row and this, the log may have been sealed.
            let (result, path) = if first { (read_packed(), &packed) } else { (read_raw(), &raw) };
            match result {
                Err(error) if !first && error.kind() == io::ErrorKind::NotFound => read_packed(),
                other => other,
            }
            .map(Bytes::from)
            .map_err(|e| Error::io("read", &path.display(), e))
        })
        .await
    }

    async fn pack(&self, row: &LogRow) -> Result<()> {
        if row.size > 0 {
            let (raw, packed, row) = (self.raw(&row.key), self.packed(&row.key), row.clone());
            blocking(move || pack(&raw, &packed, &row)).await?;
        }
        self.index.set_packed(&row.key).await?;
        let raw = self.raw(&row.key);
        blocking(move || remove(&raw)).await
    }

    async fn delete(&self, rows: &[LogRow]) -> Result<()> {
        let folders: Vec<PathBuf> = rows.iter().map(|row| self.folder(&row.key)).collect();
        blocking(move || {
            for folder in folders {
                match fs::remove_dir_all(&folder) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", &folder.display(), e));
                    }
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }
}

fn read_identity(root: &Path, path: &Path, fresh: Option<&str>) -> Result<String> {
    let result = make_folder(root).and_then(|()| match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fresh {
            Some(fresh) => write_identity(root, path, fresh).map(|()| fresh.to_owned()),
            None => Ok(String::new()),
        },
        other => other,
    });
    result.map(|text| text.trim().to_owned()).map_err(|e| Error::io("read", &path.display(), e))
}

fn write_identity(root: &Path, path: &Path, fresh: &str) -> io::Result<()> {
    let part = root.join("identity.new");
    fs::write(&part, fresh)?;
    File::open(&part)?.sync_all()?;
    fs::rename(&part, path)?;
    sync_folder(root)
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the file and the folders that lead to it, so that they survive a crash.
fn create(path: &Path) -> Result<File> {
    let make = || {
        let folder = path.parent().unwrap_or(path);
        let is_new = !folder.exists();
        make_folder(folder)?;
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        sync_folder(folder)?;
        if is_new {
            folder.ancestors().skip(1).take(2).try_for_each(sync_folder)?;
        }
        Ok(file)
    };
    make().map_err(|e| Error::io("create", &path.display(), e))
}

/// The file of a log of this many bytes; never made anew, as that would hide a loss.
fn open_raw(path: &Path, size: u64) -> Result<File> {
    let open = || {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok((file.metadata()?.len(), file))
    };
    let (length, file) = open().map_err(|e| Error::io("open", &path.display(), e))?;
    if length < size {
        let what = format!("{} has {length} bytes of {size}", path.display());
        return Err(Error::Corrupt { what });
    }
    Ok(file)
}

fn write(file: &File, mut at: u64, bytes: &[Bytes]) -> io::Result<()> {
    for piece in bytes {
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    file.sync_data()
}

fn pack(raw: &Path, packed: &Path, row: &LogRow) -> Result<()> {
    let file = match open_raw(raw, row.size) {
        // A crash between the last two steps: the row does not know yet, or the raw file is gone.
        Err(Error::Io { source, .. })
            if source.kind() == io::ErrorKind::NotFound && packed.exists() =>
        {
            return Ok(());
        }
        other => other?,
    };
    let part = packed.with_extension("part");
    let mut crc = crc32fast::Hasher::new();
    let mut pack = || {
        let mut frames = Packer::new(File::create(&part)?)?;
        let mut at = 0;
        while at < row.size {
            let length = (row.size - at).min(FRAME as u64);
            let bytes = read_exact(&file, at, usize::try_from(length).unwrap_or(FRAME))?;
            crc.update(&bytes);
            frames.frame(&bytes)?;
            at += length;
        }
        frames.finish()?.sync_all()
    };
    pack().map_err(|e| Error::io("compress", &raw.display(), e))?;
    if crc.finalize() != row.crc {
        return Err(Error::Corrupt { what: raw.display().to_string() });
    }
    fs::rename(&part, packed)
        .and_then(|()| sync_folder(packed.parent().unwrap_or(packed)))
        .map_err(|e| Error::io("replace", &raw.display(), e))
}

fn read_exact(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", &path.display(), e))
        }
        _ => Ok(()),
    }
}
