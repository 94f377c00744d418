//! Packs a folder by git's ignore rules. The same tree always gives the same bytes, so that it is uploaded once.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{cmd::Result, failure::Failure};

/// Fast, and small enough for sources.
const LEVEL: i32 = 3;
/// More than this is surely not meant.
const MAX_FILES: usize = 1_000_000;

/// A packed tree in a temporary file, which goes when this goes.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) path: tempfile::TempPath,
    pub(crate) files: usize,
}

/// Packs what git would know of a folder: `.git` itself and what is ignored stay out, hidden files do not.
pub(crate) fn pack(folder: &Path) -> Result<Packed> {
    let paths = list(folder)?;
    let packed = tempfile::NamedTempFile::new()?;
    let failed =
        |error: &io::Error| Failure::usage(format!("cannot pack {}: {error}", folder.display()));
    write(folder, &paths, packed.as_file()).map_err(|error| failed(&error))?;
    Ok(Packed { path: packed.into_temp_path(), files: paths.len() })
}

/// Relative paths, sorted by their bytes.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Err(Failure::usage(format!("{} is not a folder", folder.display())));
    }
    let mut walk = ignore::WalkBuilder::new(folder);
    walk.hidden(false)
        .parents(true)
        .git_global(false)
        .require_git(false)
        .ignore(false)
        .follow_links(false)
        .filter_entry(|entry| entry.file_name() != ".git");
    let mut paths = vec![];
    for entry in walk.build() {
        let entry = entry.map_err(|error| Failure::usage(format!("cannot pack: {error}")))?;
        match entry.path().strip_prefix(folder) {
            Ok(path) if !path.as_os_str().is_empty() => paths.push(path.to_owned()),
            _ => {}
        }
        if paths.len() > MAX_FILES {
            return Err(Failure::usage(format!("{} holds too many files", folder.display()))
                .hint("list what is not source in .gitignore"));
        }
    }
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(paths)
}

fn write(folder: &Path, paths: &[PathBuf], file: &File) -> io::Result<()> {
    let encoder = zstd::Encoder::new(BufWriter::new(file), LEVEL)?;
    let mut archive = tar::Builder::new(encoder);
    for path in paths {
        append(&mut archive, folder, path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
    }
    archive
        .into_inner()?
        .finish()?
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_data()
}

/// Names, contents, the executable bit and links count; times and owners do not.
fn append(archive: &mut tar::Builder<impl Write>, folder: &Path, path: &Path) -> io::Result<()> {
    let full = folder.join(path);
    let meta = fs::symlink_metadata(&full)?;
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_size(0);
    header.set_uid(0);
    header.set_gid(0);
    if meta.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        archive.append_link(&mut header, path, fs::read_link(&full)?)
    } else if meta.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        archive.append_data(&mut header, path, io::empty())
    } else if meta.is_file() {
        let executable = meta.permissions().mode() & 0o111 != 0;
        header.set_mode(if executable { 0o755 } else { 0o644 });
        let file = File::open(&full)?;
        let size = file.metadata()?.len();
        header.set_size(size);
        // A file that grows meanwhile must not shift what follows it.
        archive.append_data(&mut header, path, Exactly { file, left: size })
    } else {
        Ok(())
    }
}

/// As many bytes as announced, or an error.
struct Exactly {
    file: File,
    left: u64,
}

impl io::Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            return Err(io::Error::other("a file became shorter meanwhile"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(packed: &Packed) -> Vec<String> {
        let file = zstd::Decoder::new(File::open(&packed.path).unwrap()).unwrap();
        let mut archive = tar::Archive::new(file);
        let entries = archive.entries().unwrap();
        entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (folder, order) in [(&a, ["x", "y"]), (&b, ["y", "x"])] {
            for name in order {
                fs::write(folder.path().join(name), name).unwrap();
            }
            fs::create_dir_all(folder.path().join(".git")).unwrap();
            fs::write(folder.path().join(".git/HEAD"), folder.path().display().to_string())
                .unwrap();
            fs::write(folder.path().join(".gitignore"), "*.o\n").unwrap();
            fs::write(folder.path().join("main.o"), folder.path().display().to_string()).unwrap();
            fs::create_dir(folder.path().join("sub")).unwrap();
            fs::write(folder.path().join("sub/z"), "z").unwrap();
            std::os::unix::fs::symlink("x", folder.path().join("link")).unwrap();
        }
        let (one, two) = (pack(a.path()).unwrap(), pack(b.path()).unwrap());
        assert_eq!(names(&one), [".gitignore", "link", "sub", "sub/z", "x", "y"]);
        assert_eq!(fs::read(&one.path).unwrap(), fs::read(&two.path).unwrap());
    }
}
