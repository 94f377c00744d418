//! The one mapping from an error of a use case to a gRPC status.
//!
//! Every status carries an `ErrorInfo` of domain `kiln.dev`; wrong fields come as `BadRequest`, what may be tried
//! again as `RetryInfo`. Sources of internal errors stay in the log, under an id that the reply names.

use std::{collections::HashMap, error::Error as StdError, fmt::Write, time::Duration};

use kiln_core::spec::Violation;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::app::{Error, StoreError};

/// Domain of every `ErrorInfo`.
pub const DOMAIN: &str = "kiln.dev";
/// When a caller who was too much may come back.
const RETRY_BUSY: Duration = Duration::from_secs(1);
/// When a caller may come back to a server that can't reach its database.
const RETRY_UNAVAILABLE: Duration = Duration::from_secs(2);
/// A details header must stay well below the 8 KiB that clients accept.
const MAX_VIOLATIONS: usize = 8;
const MAX_FIELD: usize = 200;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Invalid(violations) => invalid(&violations),
            Error::NotFound { what, name } => {
                { Reply::new(Code::NotFound, "NOT_FOUND").with("what", what).with("name", name) }
                    .say(text)
            }
            Error::Exists { field, .. } => Reply::new(Code::AlreadyExists, "EXISTS")
                .with("field", field)
                .field(&Violation::new(field, text.as_str()))
                .say(text),
            Error::Precondition { code, .. } => {
                Reply::new(Code::FailedPrecondition, code).say(text)
            }
            Error::Unauthenticated(_) => unauthenticated(text),
            Error::Evicted => Reply::new(Code::Unauthenticated, "AGENT_EVICTED")
                .with("hint", "enrol it anew: an empty data folder, and a token of `kiln token create NAME --role enroller`")
                .say(text),
            Error::Denied(_) => Reply::new(Code::PermissionDenied, "DENIED").say(text),
            Error::Busy(_) => {
                Reply::new(Code::ResourceExhausted, "BUSY").after(RETRY_BUSY).say(text)
            }
            Error::Store(error) => store(&error),
            Error::Io { .. } => internal(&error),
        }
    }
}

fn store(error: &StoreError) -> Status {
    match error {
        StoreError::Conflict => Reply::new(Code::Aborted, "CONFLICT")
            .after(Duration::from_millis(100))
            .say("it was changed by someone else meanwhile; try again"),
        StoreError::Exists { what, name } => Reply::new(Code::AlreadyExists, "EXISTS")
            .with("what", *what)
            .with("name", name)
            .say(error.to_string()),
        StoreError::Corrupt { .. } => internal(error),
        StoreError::Database { .. } => {
            let id = logged(error);
            Reply::new(Code::Unavailable, "DATABASE")
                .with("id", id.as_str())
                .after(RETRY_UNAVAILABLE)
                .say(format!("the database can't be used now; try again (id {id} in the log)"))
        }
    }
}

/// Fields that are wrong.
pub fn invalid(violations: &[Violation]) -> Status {
    let mut text = String::new();
    for (index, violation) in violations.iter().take(MAX_VIOLATIONS).enumerate() {
        let separator = if index == 0 { "" } else { "; " };
        let _ =
            write!(text, "{separator}{}: {}", short(&violation.field), short(&violation.message));
    }
    if violations.len() > MAX_VIOLATIONS {
        let _ = write!(text, "; and {} more", violations.len() - MAX_VIOLATIONS);
    }
    let mut reply = Reply::new(Code::InvalidArgument, "INVALID");
    for violation in violations.iter().take(MAX_VIOLATIONS) {
        reply = reply.field(violation);
    }
    reply.say(text)
}

/// No or a wrong credential.
pub fn unauthenticated(text: impl Into<String>) -> Status {
    Reply::new(Code::Unauthenticated, "UNAUTHENTICATED")
        .with("hint", "send `authorization: Bearer TOKEN`; an administrator makes tokens with `kiln token create`")
        .say(text)
}

/// An agent without the certificate that it needs.
pub fn uncertified(text: impl Into<String>) -> Status {
    Reply::new(Code::Unauthenticated, "AGENT_CERTIFICATE")
        .with("hint", "the agent asks for a certificate by itself, with CertifyAgent; where that is refused, evict it and enrol it anew")
        .say(text)
}

/// A credential that is not enough.
pub fn denied(text: impl Into<String>, hint: impl Into<String>) -> Status {
    Reply::new(Code::PermissionDenied, "DENIED").with("hint", hint).say(text)
}

/// A limit of this server was reached; the same call may be made after the wait.
pub fn too_much(text: impl Into<String>, limit: &str, wait: Duration) -> Status {
    Reply::new(Code::ResourceExhausted, "LIMIT")
        .with("limit", limit)
        .with(
            "hint",
            "call less often; an administrator can raise the limit in the server's configuration",
        )
        .after(wait)
        .say(text)
}

/// The server goes; another one, or this one after its restart, goes on.
pub fn going_away() -> Status {
    Reply::new(Code::Unavailable, "SHUTDOWN")
        .after(Duration::from_millis(500))
        .say("the server shuts down; connect again")
}

/// A stream that must be opened anew.
pub fn closed(reason: &'static str, text: impl Into<String>) -> Status {
    Reply::new(Code::Aborted, reason).say(text)
}

/// Something that must be changed first.
pub fn precondition(reason: &'static str, text: impl Into<String>) -> Status {
    Reply::new(Code::FailedPrecondition, reason).say(text)
}

/// Something that should not happen: the caller gets an id, the log everything.
pub fn internal(error: &(dyn StdError + 'static)) -> Status {
    let id = logged(error);
    Reply::new(Code::Internal, "INTERNAL")
        .with("id", id.as_str())
        .say(format!("the server failed; its log says more under id {id}"))
}

fn logged(error: &(dyn StdError + 'static)) -> String {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(chain, ": {cause}");
        source = cause.source();
    }
    let mut bytes = [0; 8];
    // Without randomness the id is zero; the log line is there all the same.
    let _ = getrandom::fill(&mut bytes);
    let id = format!("{:016x}", u64::from_be_bytes(bytes));
    tracing::error!(id, error = chain, "request failed");
    id
}

fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_FIELD)]
}

/// A status in the making.
struct Reply {
    code: Code,
    reason: &'static str,
    metadata: HashMap<String, String>,
    details: ErrorDetails,
}

impl Reply {
    fn new(code: Code, reason: &'static str) -> Self {
        Self { code, reason, metadata: HashMap::new(), details: ErrorDetails::new() }
    }

    fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.insert(key.to_owned(), short(&value.into()).to_owned());
        self
    }

    fn field(mut self, violation: &Violation) -> Self {
        let (field, message) = (short(&violation.field), short(&violation.message));
        self.details.add_bad_request_violation(field, message);
        self
    }

    fn after(mut self, delay: Duration) -> Self {
        self.details.set_retry_info(Some(delay));
        self
    }

    fn say(mut self, text: impl Into<String>) -> Status {
        self.details.set_error_info(self.reason, DOMAIN, self.metadata);
        Status::with_error_details(self.code, text.into(), self.details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> StoreError {
        let source = Box::from("password=hunter2 at 10.0.0.1");
        StoreError::Database { action: "read a build", source }
    }

    #[test]
    fn each_error_has_its_code_and_reason() {
        let io = std::io::Error::other("secret path");
        let corrupt =
            StoreError::Corrupt { table: "job", column: "state", value: "hunter2".into() };
        let cases = [
            (Error::invalid("spec.jobs", "x"), Code::InvalidArgument, "INVALID"),
            (Error::not_found("build", "b"), Code::NotFound, "NOT_FOUND"),
            (Error::Exists { field: "key", message: "m".into() }, Code::AlreadyExists, "EXISTS"),
            (
                Error::Precondition { code: "NOT_DONE", message: "m".into() },
                Code::FailedPrecondition,
                "NOT_DONE",
            ),
            (Error::Unauthenticated("m"), Code::Unauthenticated, "UNAUTHENTICATED"),
            (Error::Denied("m"), Code::PermissionDenied, "DENIED"),
            (Error::Busy("m"), Code::ResourceExhausted, "BUSY"),
            (StoreError::Conflict.into(), Code::Aborted, "CONFLICT"),
            (database().into(), Code::Unavailable, "DATABASE"),
            (corrupt.into(), Code::Internal, "INTERNAL"),
            (Error::Io { action: "read", source: io }, Code::Internal, "INTERNAL"),
        ];
        for (error, code, reason) in cases {
            let shown = format!("{error:?}");
            let status = Status::from(error);
            let info = status.get_details_error_info().unwrap();
            assert_eq!((status.code(), info.reason.as_str()), (code, reason), "{shown}");
            assert_eq!(info.domain, DOMAIN);
            let retry = matches!(reason, "BUSY" | "DATABASE" | "CONFLICT");
            assert_eq!(status.get_details_retry_info().is_some(), retry, "{shown}");
        }
    }

    #[test]
    fn sources_stay_in_the_log() {
        let io = std::io::Error::other("hunter2");
        for error in [Error::from(database()), Error::Io { action: "read", source: io }] {
            let status = Status::from(error);
            let details = String::from_utf8_lossy(status.details()).into_owned();
            assert!(!status.message().contains("hunter2") && !details.contains("hunter2"));
            let info = status.get_details_error_info().unwrap();
            assert!(status.message().contains(&info.metadata["id"]));
        }
    }

    #[test]
    fn wrong_fields_are_named_and_a_flood_of_them_is_cut() {
        let wrong = |n: usize| Violation::new(format!("spec.jobs[{n}].name"), "x".repeat(5_000));
        let status = Status::from(Error::Invalid((0..5_000).map(wrong).collect()));
        let fields = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(fields.len(), MAX_VIOLATIONS);
        assert_eq!(fields[1].field, "spec.jobs[1].name");
        assert!(status.message().ends_with("and 4992 more"));
        assert!(status.details().len() < 6_000 && status.message().len() < 6_000);
    }
}
