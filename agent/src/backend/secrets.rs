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

/// The secrets of the leases of one agent.
#[derive(Debug, Clone)]
pub(super) struct Secrets {
    root: PathBuf,
    prefix: String,
}

impl Secrets {
    /// In memory where the machine has such a file system, else in the folder for temporary files.
    pub(super) fn new(kind: &str, owner: &str) -> Self {
        let memory = Path::new(MEMORY);
        let root = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Self { root, prefix: format!("kiln-{kind}-{owner}-") }
    }

    /// Writes them; the answer is the folder that holds the files, or nothing where there are none. The folder around it
    /// is closed to all other users; what is in it is readable, for the user that a container runs as.
    pub(super) fn write(&self, lease: LeaseId, secrets: &[Secret]) -> io::Result<Option<PathBuf>> {
        if secrets.is_empty() {
            return Ok(None);
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
                OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
            file.write_all(&secret.value)?;
            file.set_permissions(Permissions::from_mode(0o444))?;
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
        let secrets = Secrets { root: root.path().to_owned(), prefix: "kiln-test-".to_owned() };
        let secret = Secret { name: "token".to_owned(), value: b"hush".to_vec() };
        assert_eq!(secrets.write(lease(1), &[]).unwrap(), None);
        let files = secrets.write(lease(1), std::slice::from_ref(&secret)).unwrap().unwrap();
        assert_eq!(fs::read(files.join("token")).unwrap(), b"hush");
        let closed = fs::metadata(files.parent().unwrap()).unwrap();
        assert_eq!(closed.permissions().mode() & 0o777, 0o700);
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
