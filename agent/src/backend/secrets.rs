//! Secrets as files in memory, for as long as the job runs. Never in argv, environment or log.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use kiln_core::id::LeaseId;

use crate::run::Secret;

const MEMORY: &str = "/dev/shm";
/// The numbers of tmpfs and ramfs among file systems.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// The secrets of the leases of one agent.
#[derive(Debug, Clone)]
pub(super) struct Secrets {
    root: PathBuf,
    /// Nothing of it reaches a disk.
    in_memory: bool,
    prefix: String,
    /// Of a file, for who reads it.
    mode: u32,
}

impl Secrets {
    /// For jobs that run as this agent's own user.
    pub(super) fn own(kind: &str, owner: &str) -> Self {
        Self::with_mode(kind, owner, 0o400)
    }

    /// For jobs that run as some user, in containers that nobody else looks into.
    pub(super) fn contained(kind: &str, owner: &str) -> Self {
        Self::with_mode(kind, owner, 0o444)
    }

    fn with_mode(kind: &str, owner: &str, mode: u32) -> Self {
        let root = PathBuf::from(MEMORY);
        let in_memory = is_in_memory(&root);
        Self { root, in_memory, prefix: format!("kiln-{kind}-{owner}-"), mode }
    }

    /// Writes them; the answer is the folder that holds the files, or nothing where there are none. The folder around it
    /// is closed to all other users; what is in it is readable, for the user that a container runs as.
    pub(super) fn write(&self, lease: LeaseId, secrets: &[Secret]) -> io::Result<Option<PathBuf>> {
        if secrets.is_empty() {
            return Ok(None);
        }
        if !self.in_memory {
            return Err(io::Error::other(format!("secrets need a tmpfs at {MEMORY}; mount one")));
        }
        let closed = self.folder(lease);
        self.remove(lease);
        // Not recursive: whoever made it before us would own it.
        DirBuilder::new().mode(0o700).create(&closed)?;
        let open = closed.join("files");
        DirBuilder::new().mode(0o755).create(&open)?;
        for secret in secrets {
            let path = open.join(file_name(&secret.name)?);
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(self.mode).open(path)?;
            file.write_all(&secret.value)?;
            // Whatever the umask of the agent is.
            file.set_permissions(Permissions::from_mode(self.mode))?;
        }
        fs::set_permissions(&open, Permissions::from_mode(0o755))?;
        Ok(Some(open))
    }

    pub(super) fn remove(&self, lease: LeaseId) {
        let _was_not_there = fs::remove_dir_all(self.folder(lease));
    }

    /// Removes those of all leases but these.
    pub(super) fn sweep(&self, keep: &[LeaseId]) {
        let keep: Vec<_> = keep.iter().map(ToString::to_string).collect();
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let lease = name.to_str().and_then(|name| name.strip_prefix(&self.prefix));
            if lease.is_some_and(|lease| !keep.iter().any(|kept| kept == lease)) {
                let _somebody_elses = fs::remove_dir_all(entry.path());
            }
        }
    }

    fn folder(&self, lease: LeaseId) -> PathBuf {
        self.root.join(format!("{}{lease}", self.prefix))
    }
}

fn is_in_memory(path: &Path) -> bool {
    let kind = rustix::fs::statfs(path).ok().and_then(|found| u64::try_from(found.f_type).ok());
    kind.is_some_and(|kind| IN_MEMORY.contains(&kind))
}

fn file_name(name: &str) -> io::Result<&str> {
    let is_plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    let error = || io::Error::other(format!("a secret can't be a file named {name:?}"));
    is_plain.then_some(name).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn files_are_behind_a_closed_folder_and_go_away() {
        let lease = |number| LeaseId::from_uuid(Uuid::from_u128(number));
        let root = tempfile::tempdir().unwrap();
        let new = |in_memory| Secrets {
            root: root.path().to_owned(),
            in_memory,
            prefix: "kiln-test-".to_owned(),
            mode: 0o400,
        };
        let secrets = new(true);
        let secret = Secret { name: "token".to_owned(), value: b"hush".to_vec() };
        assert_eq!(secrets.write(lease(1), &[]).unwrap(), None);
        let files = secrets.write(lease(1), std::slice::from_ref(&secret)).unwrap().unwrap();
        assert_eq!(fs::read(files.join("token")).unwrap(), b"hush");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(files.parent().unwrap()), 0o700);
        assert_eq!(mode(&files.join("token")), 0o400);
        assert!(new(false).write(lease(1), std::slice::from_ref(&secret)).is_err(), "on a disk");
        assert!(!format!("{secret:?}").contains("hush"));

        let again = secrets.write(lease(1), std::slice::from_ref(&secret)).unwrap().unwrap();
        assert_eq!(again, files);
        secrets.write(lease(2), &[secret]).unwrap();
        secrets.sweep(&[lease(2)]);
        assert!(!files.exists());
        secrets.remove(lease(2));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        for name in ["../x", "..", "", "a/b"] {
            let bad = Secret { name: name.to_owned(), value: vec![] };
            assert!(secrets.write(lease(3), &[bad]).is_err(), "{name:?}");
        }
    }
}
