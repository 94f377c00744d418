//! The copy of the database, and the files that its rows name.

use std::path::{Path, PathBuf};

use kiln_core::id::LeaseId;

use super::{ARTIFACTS, LOGS, Result};
use crate::{logs::fs::file_names, store::sql::snapshot};

/// A file of the data folder that a row names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The first bytes of a log, which may be compressed by now.
    Log { raw: PathBuf, packed: PathBuf, size: u64 },
    /// A file as it is.
    Whole(PathBuf),
}

impl Wanted {
    /// The path in the data folder, and in the backup.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Log { raw, .. } => raw,
            Self::Whole(path) => path,
        }
    }
}

/// All of them, with what says whose the stores are.
pub(super) async fn wanted(database: &Path) -> Result<Vec<Wanted>> {
    let rows = snapshot::files(database).await?;
    let identity = |folder: &str| Wanted::Whole(Path::new(folder).join("identity"));
    let blobs = Path::new(ARTIFACTS).join("blobs");
    let mut wanted = vec![identity(LOGS), Wanted::Whole(blobs.join("identity"))];
    wanted.extend(rows.logs.into_iter().map(|log| {
        let (raw, packed) = file_names(LeaseId::from_uuid(log.lease), &log.stream);
        let (raw, packed) = (Path::new(LOGS).join(raw), Path::new(LOGS).join(packed));
        if log.packed { Wanted::Whole(packed) } else { Wanted::Log { raw, packed, size: log.size } }
    }));
    wanted.extend(rows.objects.into_iter().map(|name| Wanted::Whole(blobs.join(name))));
    Ok(wanted)
}
