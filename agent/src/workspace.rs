//! Files below a folder that a job may have arranged to harm us: every step goes by a descriptor of the folder above,
//! never through a symbolic link, never into another mount.

use std::{
    ffi::{CStr, CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path},
};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxFlags, fchmod, mkdirat, openat, statx, unlinkat,
};

/// Deeper trees are not walked: each level holds a descriptor.
const MAX_DEPTH: usize = 200;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What names the mount that a file lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mount {
    device: (u32, u32),
    id: Option<u64>,
}

fn mount_of(dir: impl AsFd) -> io::Result<Mount> {
    let stat = statx(dir, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let knows_id = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    Ok(Mount {
        device: (stat.stx_dev_major, stat.stx_dev_minor),
        id: knows_id.then_some(stat.stx_mnt_id),
    })
}

fn too_deep() -> io::Error {
    io::Error::other(format!("folders are nested more than {MAX_DEPTH} deep"))
}

/// Removes a folder with all that is in it. Symbolic links go, what they name stays; a mount is an error.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("not a folder that can be removed"));
    };
    let name = CString::new(name.as_bytes())?;
    let parent = match openat(CWD, parent, DIRECTORY, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mount = mount_of(&parent)?;
    remove_entry(&parent, &name, mount, 0)
}

/// Empties a folder, which stays.
pub fn empty(path: &Path) -> io::Result<()> {
    let dir = openat(CWD, path, DIRECTORY, Mode::empty())?;
    let mount = mount_of(&dir)?;
    remove_content(&dir, mount, 0)
}

fn remove_entry(parent: &OwnedFd, name: &CStr, mount: Mount, depth: usize) -> io::Result<()> {
    use rustix::io::Errno;
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM | Errno::ACCESS) => {}
        Err(error) => return Err(error.into()),
    }
    if depth >= MAX_DEPTH {
        return Err(too_deep());
    }
    let dir = match openat(parent, name, DIRECTORY, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ACCESS) => reopen_readable(parent, name)?,
        Err(error) => return Err(error.into()),
    };
    if mount_of(&dir)? != mount {
        return Err(io::Error::other(format!(
            "{} is a mount; unmount it first",
            name.to_string_lossy()
        )));
    }
    remove_content(&dir, mount, depth)?;
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove_content(dir: &OwnedFd, mount: Mount, depth: usize) -> io::Result<()> {
    let names = names(dir)?;
    if !names.is_empty() && !writable(dir) {
        // Read-only folders are common (caches of package managers); only their owner can change that.
        let _may_not_be_ours = fchmod(dir, Mode::RWXU);
    }
    names.iter().try_for_each(|(name, _)| remove_entry(dir, name, mount, depth + 1))
}

fn writable(dir: &OwnedFd) -> bool {
    rustix::fs::accessat(dir, c".", rustix::fs::Access::WRITE_OK, AtFlags::empty()).is_ok()
}

/// A folder that its owner may not read, made readable by its own descriptor.
fn reopen_readable(parent: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = openat(parent, name, flags, Mode::empty())?;
    rustix::fs::chmod(format!("/proc/self/fd/{}", handle.as_raw_fd()), Mode::RWXU)?;
    Ok(openat(parent, name, DIRECTORY, Mode::empty())?)
}

fn names(dir: &OwnedFd) -> io::Result<Vec<(CString, FileType)>> {
    let mut found = vec![];
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            found.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(found)
}

/// The workspace of one job, by its descriptor.
#[derive(Debug)]
pub struct Workspace {
    root: OwnedFd,
}

impl Workspace {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { root: openat(CWD, path, DIRECTORY, Mode::empty())? })
    }

    /// All regular files, with their paths from the root, sorted; what can't be read is left out by `skip`.
    pub fn files(
        &self,
        mut visit: impl FnMut(&Path) -> io::Result<()>,
        mut skip: impl FnMut(&Path, &io::Error),
    ) -> io::Result<()> {
        walk(&self.root, Path::new(""), mount_of(&self.root)?, 0, &mut visit, &mut skip)
    }

    /// Opens a regular file for reading.
    pub fn read(&self, path: &Path) -> io::Result<File> {
        let (parents, name) = split(path)?;
        let dir = self.descend(&parents, false)?;
        // A FIFO must not hold us up.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(openat(&dir, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(file)
    }

    /// Makes a file, with the folders above it, in place of what has its name.
    pub fn create(&self, path: &Path, mode: u32) -> io::Result<File> {
        let (parents, name) = split(path)?;
        let dir = self.descend(&parents, true)?;
        match unlinkat(&dir, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = openat(&dir, name, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
        fchmod(&file, Mode::from_raw_mode(mode & 0o777))?;
        Ok(File::from(file))
    }

    fn descend(&self, parents: &[&OsStr], make: bool) -> io::Result<OwnedFd> {
        let mut dir = self.root.try_clone()?;
        for name in parents {
            if make
                && let Err(error) = mkdirat(&dir, *name, Mode::from_raw_mode(0o755))
                && error != rustix::io::Errno::EXIST
            {
                return Err(error.into());
            }
            dir = openat(&dir, *name, DIRECTORY, Mode::empty())?;
        }
        Ok(dir)
    }
}

/// A relative path without `..`, as the folders and the name.
fn split(path: &Path) -> io::Result<(Vec<&OsStr>, &OsStr)> {
    let mut parts = vec![];
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name),
            Component::CurDir => {}
            _ => return Err(io::Error::other("the path leaves the workspace")),
        }
    }
    if parts.len() > MAX_DEPTH {
        return Err(too_deep());
    }
    let name = parts.pop().ok_or_else(|| io::Error::other("the path names no file"))?;
    Ok((parts, name))
}

fn walk(
    dir: &OwnedFd,
    at: &Path,
    mount: Mount,
    depth: usize,
    visit: &mut impl FnMut(&Path) -> io::Result<()>,
    skip: &mut impl FnMut(&Path, &io::Error),
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    let mut entries = names(dir)?;
    entries.sort_by(|one, other| one.0.cmp(&other.0));
    for (name, kind) in entries {
        let path = at.join(OsStr::from_bytes(name.to_bytes()));
        let kind = match kind {
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        match kind {
            FileType::RegularFile => visit(&path)?,
            FileType::Directory => match openat(dir, &*name, DIRECTORY, Mode::empty()) {
                Ok(inner) if mount_of(&inner)? != mount => {}
                Ok(inner) => walk(&inner, &path, mount, depth + 1, visit, skip)?,
                Err(error) => skip(&path, &error.into()),
            },
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn removal_takes_links_and_leaves_what_they_name() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, tree) = (dir.path().join("outside"), dir.path().join("tree"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        symlink("/nowhere", tree.join("dangling")).unwrap();
        fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o500)).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("kept").exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn nothing_is_reached_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("real")).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        symlink(dir.path(), root.join("out")).unwrap();
        symlink(dir.path().join("secret"), root.join("real/link")).unwrap();
        fs::write(root.join("real/file"), "x").unwrap();
        let workspace = Workspace::open(&root).unwrap();
        let mut seen = vec![];
        let visit = |path: &Path| {
            seen.push(path.to_owned());
            Ok(())
        };
        workspace.files(visit, |_, _| {}).unwrap();
        assert_eq!(seen, [Path::new("real/file")]);
        assert!(workspace.read(Path::new("out/secret")).is_err());
        assert!(workspace.read(Path::new("real/link")).is_err());
        assert!(workspace.read(Path::new("../secret")).is_err());
        assert!(workspace.create(Path::new("out/new"), 0o644).is_err());
        assert!(!dir.path().join("new").exists());
        let mut file = workspace.create(Path::new("real/link"), 0o755).unwrap();
        file.write_all(b"y").unwrap();
        assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"x");
        assert_eq!(fs::read(root.join("real/link")).unwrap(), b"y");
    }
}
