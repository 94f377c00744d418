//! The backup of a server with the embedded database: its rows, and the logs and artifacts that they name, as one file.
//!
//! ```text
//! FILE = zstd(tar(kiln.db, logs/…, artifacts/…, manifest.json))
//! ```
//!
//! The rows are copied in one read transaction while the server goes on. What they name does not change any more:
//! a log only grows, an artifact has its digest for a name. No credential of a file is in it: neither the keys of
//! secrets nor the administrator's token.

mod restore;
mod rows;
#[cfg(test)]
mod tests;
mod write;

use std::{
    io,
    path::{Path, PathBuf},
};

use kiln_core::Millis;
use serde::{Deserialize, Serialize};

use crate::{
    config::{self, Config, Location},
    data, store,
};

pub use restore::restore;
pub use write::backup;

const FORMAT: u32 = 1;
const DATABASE: &str = "kiln.db";
const LOGS: &str = "logs";
const ARTIFACTS: &str = "artifacts";
const MANIFEST: &str = "manifest.json";

/// Why there is no backup, or none was restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is for the embedded database; back up Postgres by its own means, as pg_dump")]
    Postgres(&'static str),
    #[error("{0} is there already; choose another name")]
    Exists(PathBuf),
    #[error("{0} is not empty; restore into an empty folder, and move what is there away")]
    NotEmpty(PathBuf),
    #[error("{what} was removed again and again while it was to be copied; try once more")]
    Restless { what: String },
    #[error("the backup {path} can't be used: {why}; nothing was changed")]
    Damaged { path: PathBuf, why: String },
    #[error("the data folder can't be used")]
    Data(#[from] data::Error),
    #[error("the database can't be copied")]
    Store(#[from] store::Error),
    #[error("the configuration can't be used")]
    Config(#[from] config::Error),
    #[error("failed to {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// What is in a backup; its last file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    /// Version of the server that made it.
    version: String,
    created_ms: Millis,
    files: Vec<Entry>,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: String,
    size: u64,
    /// In hexadecimal digits.
    sha256: String,
}

/// What was backed up or restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub files: usize,
    /// Bytes of all files, before they are compressed.
    pub bytes: u64,
    /// When the backup was made.
    pub created_ms: Millis,
    /// Where logs and artifacts are that are not in it.
    pub elsewhere: Option<String>,
}

impl Summary {
    fn of(manifest: &Manifest, config: &Config) -> Self {
        Self {
            files: manifest.files.len(),
            bytes: manifest.files.iter().map(|entry| entry.size).sum(),
            created_ms: manifest.created_ms,
            elsewhere: Some(&config.storage.url).filter(|url| !url.is_empty()).cloned(),
        }
    }
}

/// The file of the embedded database, and whether logs and artifacts are in the data folder.
fn places(config: &Config, verb: &'static str) -> Result<(PathBuf, bool)> {
    if config.is_postgres() {
        return Err(Error::Postgres(verb));
    }
    let url = config.database_url();
    let path = url.strip_prefix("sqlite:").unwrap_or(&url);
    let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
    let location = config.storage.location().map_err(config::Error::from)?;
    Ok((path, location == Location::DataDir))
}

/// Runs what blocks on a thread for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(fail("finish", Path::new("a task"))(io::Error::other(error))))
}
