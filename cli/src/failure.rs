//! What went wrong, as the person at the terminal is told.

use std::{fmt, io};

use kiln_sdk::Error;

use crate::exit::ExitStatus;

/// One error, the fields it is about, and what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: ExitStatus,
    pub(crate) message: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) hint: Option<String>,
    /// The reader of our output is gone: nothing is left to say.
    pub(crate) silent: bool,
}

impl Failure {
    pub(crate) fn new(status: ExitStatus, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), fields: vec![], hint: None, silent: false }
    }

    /// Bad input.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitStatus::Usage, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ExitStatus::Unavailable, message)
    }

    /// All of it on one line.
    pub(crate) fn line(&self) -> String {
        let fields = self.fields.iter().map(|(field, message)| format!("{field}: {message}"));
        let fields = fields.collect::<Vec<_>>().join("; ");
        if fields.is_empty() { self.message.clone() } else { format!("{}: {fields}", self.message) }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Something about a file.
    pub(crate) fn file(what: &str, path: &std::path::Path, error: &dyn fmt::Display) -> Self {
        Self::usage(format!("cannot {what} {}: {error}", path.display()))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        use tonic::Code;
        let status = match error.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unauthenticated => ExitStatus::Usage,
            _ => ExitStatus::Unavailable,
        };
        let (message, fields) = told(error);
        let hint = error.hint().map(str::to_owned).or_else(|| hint(error).map(str::to_owned));
        Self { status, message, fields, hint, silent: false }
    }
}

/// The fields get a line each; a server that lists them in its sentence too is not heard twice.
fn told(error: &Error) -> (String, Vec<(String, String)>) {
    let fields: Vec<_> =
        error.violations().iter().map(|v| (v.field.clone(), v.message.clone())).collect();
    let whole = error.message();
    let Some((field, message)) = fields.first() else { return (whole.to_owned(), fields) };
    let before = whole.split_once(&format!("{field}: {message}")).map(|(before, _)| before);
    match before.map(|before| before.trim_end_matches([' ', ':', ';', ','])) {
        None if whole == message => (whole.to_owned(), vec![]),
        None => (whole.to_owned(), fields),
        Some("") => ("the request can't be used".to_owned(), fields),
        Some(before) => (before.to_owned(), fields),
    }
}

fn hint(error: &Error) -> Option<&'static str> {
    if error.is_unreachable() {
        return Some(
            "start a server with `kiln up`, or name one with --server, KILN_SERVER or `kiln config set`",
        );
    }
    match (error.code(), error.message().split(' ').next()) {
        (tonic::Code::NotFound, Some("project")) => {
            Some("`kiln project list` shows them, `kiln project create` makes one")
        }
        (tonic::Code::NotFound, Some("agent")) => Some("`kiln agents list` shows them"),
        (tonic::Code::NotFound, Some("build" | "job")) => Some("`kiln list` shows the builds"),
        (tonic::Code::NotFound, Some("token")) => Some("`kiln token list` shows them"),
        _ => None,
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let silent = error.kind() == io::ErrorKind::BrokenPipe;
        Self { silent, ..Self::internal(error.to_string()) }
    }
}
