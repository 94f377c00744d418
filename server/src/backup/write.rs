//! Making a backup.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_core::Millis;
use sha2::{Digest, Sha256};

use super::{
    DATABASE, Entry, Error, FORMAT, MANIFEST, Manifest, Result, Summary, blocking, fail, places,
    rows::{Wanted, wanted},
};
use crate::{config::Config, logs::frames, store::sql::snapshot};

const LEVEL: i32 = 3;
/// Bytes of a compressed log that are unpacked at a time.
const PIECE: usize = 1 << 20;
/// Copies of the rows that are made at most: what retention removes meanwhile is gone from the next one.
const TRIES: u32 = 5;
/// For what removes a file to remove its row too.
const PAUSE: Duration = Duration::from_secs(1);

/// Writes the backup of this server, which may run meanwhile, to a file that is not there yet.
pub async fn backup(config: &Config, file: &Path, now: Millis) -> Result<Summary> {
    let (database, here) = places(config, "kiln admin backup")?;
    if file.exists() {
        return Err(Error::Exists(file.to_owned()));
    }
    let work = Work::new(file)?;
    let mut gone = String::new();
    for _ in 0..TRIES {
        let copy = work.0.join(DATABASE);
        // That of the try before.
        let _ = fs::remove_file(&copy);
        snapshot::copy(&database, &copy).await?;
        let wanted = if here { wanted(&copy).await? } else { vec![] };
        let (archive, data) = (work.0.join("archive"), config.data_dir.clone());
        let packed = blocking({
            let archive = archive.clone();
            move || pack(&archive, &copy, &data, &wanted, now)
        });
        match packed.await? {
            Packed::Whole(manifest) => {
                publish(&archive, file)?;
                return Ok(Summary::of(&manifest, config));
            }
            Packed::Gone(path) => gone = path.display().to_string(),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(Error::Restless { what: gone })
}

/// The folder beside the backup in which it is made; it goes with this.
struct Work(PathBuf);

impl Work {
    fn new(file: &Path) -> Result<Self> {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let path = file.with_file_name(name);
        // One that a crash left behind.
        let _ = fs::remove_dir_all(&path);
        DirBuilder::new().mode(0o700).create(&path).map_err(fail("make the folder", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Gives the archive its name, durably, and never another's.
fn publish(archive: &Path, file: &Path) -> Result<()> {
    match fs::hard_link(archive, file) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::Exists(file.to_owned()));
        }
        linked => linked.map_err(fail("make", file))?,
    }
    let folder = file.parent().filter(|path| !path.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail("sync", folder))
}

enum Packed {
    Whole(Manifest),
    /// A file that the rows name is not there any more.
    Gone(PathBuf),
}

fn pack(
    archive: &Path,
    database: &Path,
    data: &Path,
    wanted: &[Wanted],
    now: Millis,
) -> Result<Packed> {
    let mut options = OpenOptions::new();
    let out = options.write(true).create(true).truncate(true).mode(0o600).open(archive);
    let out = out.map_err(fail("write", archive))?;
    let packer = zstd::Encoder::new(out, LEVEL).and_then(|mut packer| {
        packer.include_checksum(true)?;
        Ok(packer)
    });
    let packer = packer.map_err(fail("write", archive))?;
    let mut archived =
        Archive { tar: tar::Builder::new(packer), path: archive, now, files: vec![] };
    archived.add(Path::new(DATABASE), source(database, None)?)?;
    for one in wanted {
        match open(data, one) {
            Ok(Some(source)) => archived.add(one.path(), source)?,
            Ok(None) => {}
            Err(Error::Io { source, path, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Packed::Gone(path));
            }
            Err(error) => return Err(error),
        }
    }
    archived.finish().map(Packed::Whole)
}

/// Bytes, and how many.
type Source = (Box<dyn Read>, u64);

fn source(path: &Path, size: Option<u64>) -> Result<Source> {
    let open = || {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        match size {
            Some(size) if length < size => Err(io::Error::other("it is shorter than its row says")),
            size => Ok((file, size.unwrap_or(length))),
        }
    };
    let (file, size) = open().map_err(fail("read", path))?;
    Ok((Box::new(file.take(size)), size))
}

/// Nothing where there is no file for it.
fn open(data: &Path, wanted: &Wanted) -> Result<Option<Source>> {
    match wanted {
        Wanted::Whole(path) => source(&data.join(path), None).map(Some),
        Wanted::Log { size: 0, .. } => Ok(None),
        Wanted::Log { raw, packed, size } => match source(&data.join(raw), Some(*size)) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let path = data.join(packed);
                let file = File::open(&path).map_err(fail("read", &path))?;
                Ok(Some((Box::new(Unpacked { file, at: 0, size: *size, piece: vec![] }), *size)))
            }
            found => found.map(Some),
        },
    }
}

/// The first bytes of a log that was compressed after its row was copied.
struct Unpacked {
    file: File,
    at: u64,
    size: u64,
    /// What was read and not taken, last byte first.
    piece: Vec<u8>,
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && self.at < self.size {
            let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
            self.piece = frames::read(&self.file, self.at, left.min(PIECE))?;
            self.at += self.piece.len() as u64;
            self.piece.reverse();
        }
        let taken = buffer.len().min(self.piece.len());
        for (to, from) in buffer.iter_mut().zip(self.piece.drain(self.piece.len() - taken..).rev())
        {
            *to = from;
        }
        Ok(taken)
    }
}

struct Archive<'a> {
    tar: tar::Builder<zstd::Encoder<'static, File>>,
    path: &'a Path,
    now: Millis,
    files: Vec<Entry>,
}

impl Archive<'_> {
    fn add(&mut self, path: &Path, (bytes, size): Source) -> Result<()> {
        let mut bytes = Hashed { inner: bytes, sha256: Sha256::new(), read: 0 };
        let header = self.header(size);
        self.append(header, path, &mut bytes)?;
        if bytes.read != size {
            return Err(fail("read", path)(io::ErrorKind::UnexpectedEof.into()));
        }
        let sha256 = format!("{:x}", bytes.sha256.finalize());
        self.files.push(Entry { path: path.to_string_lossy().into_owned(), size, sha256 });
        Ok(())
    }

    fn header(&self, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(self.now / 1_000).unwrap_or_default());
        header.set_entry_type(tar::EntryType::Regular);
        header
    }

    fn append(&mut self, mut header: tar::Header, path: &Path, bytes: impl Read) -> Result<()> {
        self.tar.append_data(&mut header, path, bytes).map_err(fail("add to the backup", path))
    }

    fn finish(mut self) -> Result<Manifest> {
        let manifest = Manifest {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            created_ms: self.now,
            files: std::mem::take(&mut self.files),
        };
        let failed = |error| fail("write", self.path)(error);
        let text = serde_json::to_vec(&manifest).map_err(|error| failed(error.into()))?;
        let header = self.header(text.len() as u64);
        self.append(header, Path::new(MANIFEST), text.as_slice())?;
        let path = self.path;
        let written = self.tar.into_inner().and_then(zstd::Encoder::finish);
        written
            .and_then(|mut file| file.flush().and_then(|()| file.sync_all()))
            .map_err(fail("write", path))?;
        Ok(manifest)
    }
}

struct Hashed {
    inner: Box<dyn Read>,
    sha256: Sha256,
    read: u64,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.sha256.update(&buffer[..read]);
        self.read += read as u64;
        Ok(read)
    }
}
