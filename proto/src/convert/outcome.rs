//! How something ended, and what it left.

use kiln_core::{
    outcome::{FailureKind, Outcome},
    session::Artifact,
};

use super::{Read, Reader, wide};
use crate::v1;

/// A sentence for a person; what is longer is cut, since a report must not fail for it.
const MAX_MESSAGE: usize = 4_000;
const MAX_ARTIFACT_NAME: usize = 1_000;
/// Permission bits of a file.
const MODE: u32 = 0o7777;

/// The kind of a failure; unspecified is wrong.
pub fn failure_kind(field: &str, number: i32) -> Read<FailureKind> {
    let mut reader = Reader::at(field);
    let kind = reader.member("", number).and_then(|kind| match kind {
        v1::FailureKind::Unspecified => {
            reader.fail("", "must be set");
            None
        }
        v1::FailureKind::User => Some(FailureKind::User),
        v1::FailureKind::Infra => Some(FailureKind::Infra),
        v1::FailureKind::Timeout => Some(FailureKind::Timeout),
        v1::FailureKind::Stalled => Some(FailureKind::Stalled),
        v1::FailureKind::Oom => Some(FailureKind::Oom),
        v1::FailureKind::Lost => Some(FailureKind::Lost),
        v1::FailureKind::Dependency => Some(FailureKind::Dependency),
    });
    reader.done(kind)
}

impl From<FailureKind> for v1::FailureKind {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::User => Self::User,
            FailureKind::Infra => Self::Infra,
            FailureKind::Timeout => Self::Timeout,
            FailureKind::Stalled => Self::Stalled,
            FailureKind::Oom => Self::Oom,
            FailureKind::Lost => Self::Lost,
            FailureKind::Dependency => Self::Dependency,
        }
    }
}

/// An outcome; `field` is the path of the message.
pub fn outcome(field: &str, outcome: v1::Outcome) -> Read<Outcome> {
    let mut reader = Reader::at(field);
    let message = cut(outcome.message);
    let read = reader.member("state", outcome.state).and_then(|state| match state {
        v1::OutcomeState::Unspecified => {
            reader.fail("state", "must be set");
            None
        }
        v1::OutcomeState::Succeeded => Some(Outcome::Succeeded),
        v1::OutcomeState::Cancelled => Some(Outcome::Cancelled { message }),
        v1::OutcomeState::Failed => {
            let kind = failure_kind(&reader.name("failure"), outcome.failure);
            let exit_code = outcome.exit_code;
            reader.take(kind).map(|kind| Outcome::Failed { kind, exit_code, message })
        }
    });
    reader.done(read)
}

fn cut(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        message.push('…');
    }
    message
}

impl From<Outcome> for v1::Outcome {
    fn from(outcome: Outcome) -> Self {
        let state = |state: v1::OutcomeState| Self { state: state.into(), ..Self::default() };
        match outcome {
            Outcome::Succeeded => Self { exit_code: Some(0), ..state(v1::OutcomeState::Succeeded) },
            Outcome::Cancelled { message } => {
                Self { message, ..state(v1::OutcomeState::Cancelled) }
            }
            Outcome::Failed { kind, exit_code, message } => Self {
                failure: v1::FailureKind::from(kind).into(),
                exit_code,
                message,
                ..state(v1::OutcomeState::Failed)
            },
        }
    }
}

/// An artifact whose name stays inside a workspace.
pub fn artifact(field: &str, artifact: v1::Artifact) -> Read<Artifact> {
    let mut reader = Reader::at(field);
    let v1::Artifact { name, size, sha256, mode } = artifact;
    let inside = (1..=MAX_ARTIFACT_NAME).contains(&name.len())
        && !name.contains('\0')
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !inside {
        reader.fail("name", "must be a path of 1 to 1,000 bytes inside the workspace");
    }
    if sha256.len() != 64 || !sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        reader.fail("sha256", "must be 64 lower-case hexadecimal digits");
    }
    let size = reader.unsigned("size", size);
    reader.done(Some(Artifact { name, size, sha256, mode: mode & MODE }))
}

impl From<Artifact> for v1::Artifact {
    fn from(artifact: Artifact) -> Self {
        let Artifact { name, size, sha256, mode } = artifact;
        Self { name, size: wide(size), sha256, mode }
    }
}
