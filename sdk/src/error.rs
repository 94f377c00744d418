//! One error for all calls: what went wrong, which field, why, and what to do.

use std::{collections::BTreeMap, error::Error as StdError, fmt};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::tls::Fault;

/// A field of a request that the server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path in the request: `spec.jobs[2].timeouts.total_ms`.
    pub field: String,
    pub message: String,
}

/// Why a call failed.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    code: Code,
    message: String,
    violations: Vec<Violation>,
    reason: Option<String>,
    metadata: BTreeMap<String, String>,
    hint: Option<String>,
    local: bool,
}

impl Error {
    /// An error of this side: a file that can't be read, a digest that is wrong.
    pub(crate) fn local(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            message: message.into(),
            violations: vec![],
            reason: None,
            metadata: BTreeMap::new(),
            hint: None,
            local: true,
        }))
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    pub(crate) fn io(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => Code::NotFound,
            std::io::ErrorKind::PermissionDenied => Code::PermissionDenied,
            _ => Code::Internal,
        };
        Self::local(code, format!("cannot {what} {}: {error}", path.display()))
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// One sentence for a person.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The fields that were refused.
    pub fn violations(&self) -> &[Violation] {
        &self.0.violations
    }

    /// The stable upper-case word for the cause, where the server gave one.
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.as_deref()
    }

    /// Facts that go with the reason.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.metadata
    }

    /// What to do about it, where anybody knows.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The server does not trust the certificate that this side presents.
    pub fn is_refused_certificate(&self) -> bool {
        self.0.local && Fault::is_refusal(&self.0.message)
    }

    /// The server did not answer, or could not be reached at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.0.code, Code::Unavailable | Code::DeadlineExceeded)
            || (self.0.local && matches!(self.0.code, Code::Unknown))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        for violation in &self.0.violations {
            write!(f, "; {}: {}", violation.field, violation.message)?;
        }
        Ok(())
    }
}

impl StdError for Error {}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let local = status.source().is_some();
        if local && let Some(fault) = Fault::find(&status) {
            let message = format!("the connection to the server failed: {fault}");
            return Self::local(Code::FailedPrecondition, message).with_hint(fault.hint);
        }
        let details = status.get_error_details();
        let violations = details.bad_request().map_or_else(Vec::new, |bad| {
            let fields = bad.field_violations.iter();
            fields
                .map(|v| Violation { field: v.field.clone(), message: v.description.clone() })
                .collect()
        });
        let info = details.error_info();
        let metadata: BTreeMap<_, _> =
            info.map_or_else(BTreeMap::new, |info| info.metadata.clone().into_iter().collect());
        let help = details.help().and_then(|help| help.links.first());
        let hint = metadata
            .get("hint")
            .cloned()
            .or_else(|| help.map(|link| link.description.clone()))
            .or_else(|| default_hint(status.code()).map(str::to_owned));
        Self(Box::new(Inner {
            code: status.code(),
            message: message(&status, local),
            violations,
            reason: info.map(|info| info.reason.clone()).filter(|reason| !reason.is_empty()),
            metadata,
            hint,
            local,
        }))
    }
}

/// A transport's own text hides the cause at the end of a chain: "transport error: … : connection refused".
fn message(status: &Status, local: bool) -> String {
    if local {
        let mut cause: &dyn StdError = status;
        while let Some(next) = cause.source() {
            cause = next;
        }
        return format!("the connection to the server failed: {cause}");
    }
    if status.message().is_empty() {
        return status.code().description().to_owned();
    }
    status.message().to_owned()
}

const fn default_hint(code: Code) -> Option<&'static str> {
    match code {
        Code::Unauthenticated => Some("present a token that is neither revoked nor expired"),
        Code::PermissionDenied => Some("ask an administrator for a token with a role that may"),
        Code::Unimplemented => Some("the server is older than this client"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, FieldViolation};

    use super::*;

    #[test]
    fn details_are_kept() {
        let mut details = ErrorDetails::new();
        details.set_bad_request(vec![FieldViolation::new("spec.jobs[0].name", "must be set")]);
        details.set_error_info("INVALID", "kiln", [("hint".to_owned(), "name it".to_owned())]);
        let status = Status::with_error_details(Code::InvalidArgument, "bad spec", details);
        let error = Error::from(status);
        assert_eq!(error.to_string(), "bad spec; spec.jobs[0].name: must be set");
        assert_eq!(error.reason(), Some("INVALID"));
        assert_eq!(error.hint(), Some("name it"));
        assert!(!error.is_unreachable());
    }
}
