//! The data folder: made, locked by one server at a time, with the first administrator's token and the key of secrets
//! in it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::secrets::{self, Keys};

/// Name of the file of the first administrator's token.
pub const ADMIN_TOKEN: &str = "admin.token";
/// Name of the file of the keys that encrypt secrets, where no other is configured.
pub const SECRETS_KEY: &str = "secrets.key";

/// Name of the file of the authorities that clients of this machine may trust.
pub const AUTHORITIES: &str = "ca.pem";

/// Why the data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} can't be used")]
    Keys {
        path: PathBuf,
        #[source]
        source: secrets::Error,
    },
    #[error("{0} is used by another server; stop it, or choose another data folder")]
    Locked(PathBuf),
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// A folder that is locked until this is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl Folder {
    /// Makes the folder where it is missing and locks it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path).map_err(fail("make the folder", path))?;
        let name = path.join("lock");
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(&name);
        let lock = lock.map_err(fail("open", &name))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::Locked(path.to_owned())),
            Err(fs::TryLockError::Error(source)) => Err(fail("lock", &name)(source)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The administrator's secret that was written before.
    pub fn admin_token(&self) -> Result<Option<String>, Error> {
        let name = self.path.join(ADMIN_TOKEN);
        match fs::read_to_string(&name) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fail("read", &name)(error)),
        }
    }

    /// Removes a secret that is nobody's.
    pub fn remove_admin_token(&self) -> Result<(), Error> {
        let name = self.path.join(ADMIN_TOKEN);
        fs::remove_file(&name).map_err(fail("remove", &name))
    }

    /// Makes a secret of this id and writes it where only its owner can read it.
    pub fn make_admin_token(&self, id: uuid::Uuid) -> Result<String, Error> {
        let name = self.path.join(ADMIN_TOKEN);
        let mut random = [0; 32];
        getrandom::fill(&mut random)
            .map_err(|error| fail("find randomness for", &name)(error.into()))?;
        let secret = format!("kiln_{}_{}", id.simple(), URL_SAFE_NO_PAD.encode(random));
        write_private(&self.path, ADMIN_TOKEN, format!("{secret}\n").as_bytes())?;
        Ok(secret)
    }

    /// The key of secrets that was made before.
    pub fn secrets_key(&self) -> Result<Option<Keys>, Error> {
        let name = self.path.join(SECRETS_KEY);
        match secrets::read(&name) {
            Ok(keys) => keys.map(Some).map_err(|source| Error::Keys { path: name, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fail("read", &name)(error)),
        }
    }

    /// Makes a key for secrets and writes it where only its owner can read it.
    pub fn make_secrets_key(&self) -> Result<Keys, Error> {
        let path = self.path.join(SECRETS_KEY);
        let text = secrets::new_key_text()
            .map_err(|error| fail("find randomness for", &path)(io::Error::other(error)))?;
        write_private(&self.path, SECRETS_KEY, text.as_bytes())?;
        Keys::parse(&text).map_err(|source| Error::Keys { path, source })
    }
}

/// Writes the certificates of the authorities, in PEM.
pub fn write_authorities(folder: &Path, pem: &str) -> Result<(), Error> {
    write_private(folder, AUTHORITIES, pem.as_bytes())
}

/// Replaces a file of the folder as a whole, durably, for its owner only.
fn write_private(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let (path, fresh) = (folder.join(name), folder.join(format!(".{name}.new")));
    // A crash may have left one behind.
    let _ = fs::remove_file(&fresh);
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(fail("write", &fresh))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&fresh, &path))
        .and_then(|()| File::open(folder)?.sync_all())
        .map_err(fail("write", &path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_server_at_a_time_uses_a_folder() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("data");
        let first = Folder::open(&path).unwrap();
        assert!(matches!(Folder::open(&path), Err(Error::Locked(_))));
        drop(first);
        Folder::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn the_token_is_for_its_owner_only() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::open(home.path()).unwrap();
        assert_eq!(folder.admin_token().unwrap(), None);
        let secret = folder.make_admin_token(uuid::Uuid::from_u128(7)).unwrap();
        assert!(secret.starts_with("kiln_00000000000000000000000000000007_"));
        assert_eq!(secret.len(), "kiln_".len() + 32 + 1 + 43);
        assert_eq!(folder.admin_token().unwrap(), Some(secret));
        let mode = fs::metadata(home.path().join(ADMIN_TOKEN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_key_of_secrets_is_made_once_for_its_owner() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::open(home.path()).unwrap();
        assert!(folder.secrets_key().unwrap().is_none());
        let made = folder.make_secrets_key().unwrap();
        assert_eq!(folder.secrets_key().unwrap().unwrap().first(), made.first());
        let path = home.path().join(SECRETS_KEY);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "hunter2").unwrap();
        let error = folder.secrets_key().unwrap_err();
        assert!(
            error.to_string().contains("secrets.key") && !format!("{error:?}").contains("hunter2")
        );
    }
}
