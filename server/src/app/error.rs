//! Why a use case did not do it, by what the caller can do about it.

use kiln_core::spec::Violation;

use crate::store;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Fields of the request are wrong.
    #[error("{}", .0.iter().map(|v| format!("{}: {}", v.field, v.message)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Violation>),
    #[error("{what} {name:?} does not exist")]
    NotFound { what: &'static str, name: String },
    /// A unique name or key is taken; `field` is the one to change.
    #[error("{message}")]
    Exists { field: &'static str, message: String },
    /// The object is in a state that does not allow it.
    #[error("{message}")]
    Precondition { code: &'static str, message: String },
    /// Who asks is not known.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// Who asks was an agent, and is none any more.
    #[error("this agent was evicted: its jobs are lost, and its credential is worth nothing")]
    Evicted,
    /// Who asks may not.
    #[error("{0}")]
    Denied(&'static str),
    /// Too much at once; try again later.
    #[error("{0}")]
    Busy(&'static str),
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A log or a blob could not be read or written.
    #[error("the server failed to {action}")]
    Io {
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation::new(field, message)])
    }

    #[expect(clippy::needless_pass_by_value, reason = "ids and names alike are passed")]
    pub fn not_found(what: &'static str, name: impl ToString) -> Self {
        Self::NotFound { what, name: name.to_string() }
    }
}
