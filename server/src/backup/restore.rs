//! Restoring a backup: unpacked beside its place, checked as a whole, and only then moved there.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    ARTIFACTS, DATABASE, Entry, Error, FORMAT, LOGS, MANIFEST, Manifest, Result, Summary, blocking,
    fail, places,
};
use crate::{config::Config, data::Folder};

const LOCK: &str = "lock";
/// Where a backup is unpacked, in the data folder.
const WORK: &str = "restore.part";
/// Bytes of a manifest at most: some 200 a file.
const MAX_MANIFEST: u64 = 1 << 30;

/// Restores a backup into the empty data folder of a server that does not run.
pub async fn restore(config: &Config, file: &Path) -> Result<Summary> {
    let (database, _) = places(config, "kiln admin restore")?;
    let (file, data) = (file.to_owned(), config.data_dir.clone());
    let manifest = blocking(move || into_folder(&file, &data, &database)).await?;
    Ok(Summary::of(&manifest, config))
}

fn into_folder(file: &Path, data: &Path, database: &Path) -> Result<Manifest> {
    let opened = File::open(file).map_err(fail("read", file))?;
    let fresh = !data.exists();
    let folder = Folder::open(data)?;
    let restored = empty(data, database).and_then(|()| {
        let work = data.join(WORK);
        let done = unpack(opened, file, &work).and_then(|manifest| {
            settle(&work, data, database)?;
            Ok(manifest)
        });
        // What was moved away is not in it any more.
        let _ = fs::remove_dir_all(&work);
        done
    });
    drop(folder);
    if restored.is_err() && fresh {
        // Nothing but the lock was made.
        let _ = fs::remove_file(data.join(LOCK)).and_then(|()| fs::remove_dir(data));
    }
    restored
}

/// Nothing is there but our own lock.
fn empty(data: &Path, database: &Path) -> Result<()> {
    let entries = fs::read_dir(data).map_err(fail("read", data))?;
    for entry in entries {
        if entry.map_err(fail("read", data))?.file_name() != LOCK {
            return Err(Error::NotEmpty(data.to_owned()));
        }
    }
    if database.exists() { Err(Error::Exists(database.to_owned())) } else { Ok(()) }
}

fn unpack(opened: File, file: &Path, work: &Path) -> Result<Manifest> {
    let damaged = |why: String| Error::Damaged { path: file.to_owned(), why };
    let broken = |error: io::Error| damaged(error.to_string());
    make(work)?;
    let mut archive = tar::Archive::new(zstd::Decoder::new(opened).map_err(broken)?);
    let mut found = BTreeMap::new();
    let mut manifest: Option<Manifest> = None;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.into_owned();
        let name = path.to_string_lossy().into_owned();
        if manifest.is_some() || entry.header().entry_type() != tar::EntryType::Regular {
            return Err(damaged(format!("{name:?} does not belong into it")));
        }
        if path == Path::new(MANIFEST) {
            let mut text = vec![];
            (&mut entry).take(MAX_MANIFEST).read_to_end(&mut text).map_err(broken)?;
            manifest =
                Some(serde_json::from_slice(&text).map_err(|error| {
                    damaged(format!("its manifest is not understood: {error}"))
                })?);
            continue;
        }
        if !is_ours(&path) {
            return Err(damaged(format!("{name:?} does not belong into it")));
        }
        let to = work.join(&path);
        make(to.parent().unwrap_or(work))?;
        let (size, sha256) = store(&mut entry, &to, &broken)?;
        found.insert(name.clone(), Entry { path: name, size, sha256 });
    }
    // What follows is checked too: a cut within the last block would go unseen.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    let manifest = manifest.ok_or_else(|| damaged("it has no manifest, so it was cut".into()))?;
    check(&manifest, found).map_err(damaged)?;
    Ok(manifest)
}

fn is_ours(path: &Path) -> bool {
    let mut parts = path.components();
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let first = parts.next().map(|part| part.as_os_str().to_owned());
    let below = parts.next().is_some();
    plain
        && first.is_some_and(|first| {
            (first == LOGS || first == ARTIFACTS) == below && (below || first == DATABASE)
        })
}

fn store(
    bytes: &mut impl Read,
    to: &Path,
    broken: &impl Fn(io::Error) -> Error,
) -> Result<(u64, String)> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(to);
    let mut file = file.map_err(fail("write", to))?;
    let (mut sha256, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = bytes.read(&mut buffer).map_err(broken)?;
        if read == 0 {
            break;
        }
        sha256.update(&buffer[..read]);
        size += read as u64;
        file.write_all(&buffer[..read]).map_err(fail("write", to))?;
    }
    file.sync_all().map_err(fail("write", to))?;
    Ok((size, format!("{:x}", sha256.finalize())))
}

/// What was found is what the manifest names, byte for byte.
fn check(manifest: &Manifest, mut found: BTreeMap<String, Entry>) -> Result<(), String> {
    if manifest.format != FORMAT {
        return Err(format!("its format is {}; this version reads {FORMAT}", manifest.format));
    }
    for entry in &manifest.files {
        match found.remove(&entry.path) {
            None => return Err(format!("{} is missing", entry.path)),
            Some(other) if other != *entry => {
                return Err(format!("{} is not what its manifest says", entry.path));
            }
            Some(_) => {}
        }
    }
    match found.pop_first() {
        Some((name, _)) => Err(format!("{name} is not in its manifest")),
        None if manifest.files.iter().any(|entry| entry.path == DATABASE) => Ok(()),
        None => Err("it holds no database".to_owned()),
    }
}

/// Moves everything to its place, the database last: without it, nothing of the rest is used.
fn settle(work: &Path, data: &Path, database: &Path) -> Result<()> {
    for folder in [LOGS, ARTIFACTS] {
        let from = work.join(folder);
        if from.exists() {
            sync_folders(&from)?;
            let to = data.join(folder);
            fs::rename(&from, &to).map_err(fail("move to", &to))?;
        }
    }
    let place = database.parent().unwrap_or(data);
    make(place)?;
    move_file(&work.join(DATABASE), database)?;
    for folder in [place, data] {
        sync(folder)?;
    }
    Ok(())
}

/// A database that is configured elsewhere may be on another file system.
fn move_file(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let part = to.with_extension("part");
            fs::copy(from, &part)
                .and_then(|_| File::open(&part)?.sync_all())
                .and_then(|()| fs::rename(&part, to))
                .map_err(fail("write", to))
        }
        moved => moved.map_err(fail("write", to)),
    }
}

fn make(folder: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(fail("make the folder", folder))
}

fn sync_folders(folder: &Path) -> Result<()> {
    let mut next: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = next.pop() {
        for entry in fs::read_dir(&folder).map_err(fail("read", &folder))? {
            let entry = entry.map_err(fail("read", &folder))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                next.push(entry.path());
            }
        }
        sync(&folder)?;
    }
    Ok(())
}

fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail("sync", folder))
}
