//! Why bytes could not be taken or given.

use std::{fmt::Display, io};

use crate::{app, store};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {name:?} does not exist")]
    NotFound { what: &'static str, name: String },
    #[error("{field}: {message}")]
    Invalid { field: &'static str, message: String },
    /// The bytes between are missing.
    #[error("the log ends at {wanted} and this piece begins at {offset}; send from {wanted} on")]
    Gap { wanted: u64, offset: u64 },
    /// It is closed.
    #[error("the log is sealed with {size} bytes; nothing can be added")]
    Sealed { size: u64 },
    /// It holds its job no more.
    #[error("the lease {lease} has ended; what it leaves is not taken")]
    Stale { lease: kiln_core::id::LeaseId },
    #[error("{0}")]
    Busy(&'static str),
    /// A newer upload of the same thing took its place.
    #[error("a newer upload took the place of this one; open again to learn what is held")]
    Replaced,
    #[error(
        "{what}: what is stored does not match its index; restore it from a backup or delete the lease's logs"
    )]
    Corrupt { what: String },
    /// The folder or bucket belongs to another database.
    #[error(
        "the {name} store has identity {found:?} but the database knows {recorded:?}; point `storage.url`, or `data` where it is empty, at the store that belongs to this database; several servers of one database need a `storage.url`"
    )]
    Foreign { name: &'static str, found: String, recorded: String },
    #[error("failed to {action} {path}")]
    Io {
        action: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("failed to {action} {path}")]
    Object {
        action: &'static str,
        path: String,
        #[source]
        source: object_store::Error,
    },
    #[error(transparent)]
    Store(#[from] store::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn io<P: ToString + ?Sized>(action: &'static str, path: &P, source: io::Error) -> Self {
        Self::Io { action, path: path.to_string(), source }
    }

    pub fn object<P: ToString + ?Sized>(
        action: &'static str,
        path: &P,
        source: object_store::Error,
    ) -> Self {
        Self::Object { action, path: path.to_string(), source }
    }

    pub fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { field, message: message.into() }
    }

    pub fn not_found(what: &'static str, name: impl Display) -> Self {
        Self::NotFound { what, name: name.to_string() }
    }
}

impl From<Error> for app::Error {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Gap { .. } => "LOG_GAP",
            Error::Sealed { .. } => "LOG_SEALED",
            Error::Replaced => "UPLOAD_REPLACED",
            Error::Stale { .. } => "LEASE_STALE",
            _ => "STORE_UNUSABLE",
        };
        match error {
            Error::NotFound { what, name } => Self::NotFound { what, name },
            Error::Invalid { field, message } => Self::invalid(field, message),
            Error::Busy(message) => Self::Busy(message),
            Error::Store(error) => Self::Store(error),
            Error::Gap { .. } | Error::Sealed { .. } | Error::Replaced | Error::Stale { .. } => {
                Self::Precondition { code, message: error.to_string() }
            }
            Error::Io { ref source, .. } if is_no_room(source) => {
                tracing::error!(%error, %source, "what is sent waits for room on the disk");
                Self::Busy("the server's disk is full; what was sent is taken when there is room")
            }
            Error::Io { action, .. } | Error::Object { action, .. } => {
                Self::Io { action, source: io::Error::other(error) }
            }
            Error::Corrupt { .. } | Error::Foreign { .. } => {
                Self::Io { action: "use what is stored", source: io::Error::other(error) }
            }
        }
    }
}

/// The same write may succeed later.
fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_no_reason_to_give_up() {
        let full = Error::io("write", "/logs", io::ErrorKind::StorageFull.into());
        assert!(matches!(app::Error::from(full), app::Error::Busy(_)));
        let broken = Error::io("write", "/logs", io::ErrorKind::PermissionDenied.into());
        assert!(matches!(app::Error::from(broken), app::Error::Io { .. }));
    }
}
