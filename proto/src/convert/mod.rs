//! Messages to core types and back.
//!
//! What comes from outside is read by functions that name each wrong field and never panic; zero means the default
//! that the message documents. What goes out is written by `From`. It knows no rule of the domain: whether a
//! specification makes sense is for `kiln_core::spec` to say.

mod event;
mod farm;
mod outcome;
mod session;
mod spec;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, hash::Hash, str::FromStr};

use kiln_core::{id::ParseIdError, spec::Violation};

pub use event::{build_state, event, job_status};
pub use farm::{heartbeat, load, offer, profile};
pub use outcome::{artifact, failure_kind, outcome};
pub use session::{assign, assignment, finished, held, journal, journal_entry, report, secrets};
pub use spec::{build_spec, job_spec};

/// What was read, or all that is wrong with it.
pub type Read<T> = Result<T, Vec<Violation>>;

/// An id, or the violation of the field that holds it.
pub fn id<T: FromStr<Err = ParseIdError>>(field: &str, text: &str) -> Result<T, Violation> {
    text.parse().map_err(|error: ParseIdError| Violation::new(field, error.to_string()))
}

/// An id where the text is not empty.
pub fn optional_id<T: FromStr<Err = ParseIdError>>(
    field: &str,
    text: &str,
) -> Result<Option<T>, Violation> {
    if text.is_empty() { Ok(None) } else { id(field, text).map(Some) }
}

/// A number that must not be negative.
pub fn unsigned(field: &str, value: i64) -> Result<u64, Violation> {
    u64::try_from(value).map_err(|_| Violation::new(field, NEGATIVE))
}

/// A small number that must not be negative.
pub fn count(field: &str, value: i32) -> Result<u32, Violation> {
    u32::try_from(value).map_err(|_| Violation::new(field, NEGATIVE))
}

const NEGATIVE: &str = "must not be negative";

/// Reads the fields of one message, and keeps what is wrong with them.
#[derive(Debug)]
struct Reader {
    path: String,
    found: Vec<Violation>,
}

impl Reader {
    fn at(path: impl Into<String>) -> Self {
        Self { path: path.into(), found: vec![] }
    }

    fn fail(&mut self, field: &str, message: impl Into<String>) {
        self.found.push(Violation::new(self.name(field), message));
    }

    /// The field's path.
    fn name(&self, field: &str) -> String {
        match (self.path.as_str(), field) {
            ("", field) => field.to_owned(),
            (path, "") => path.to_owned(),
            (path, field) => format!("{path}.{field}"),
        }
    }

    fn unsigned(&mut self, field: &str, value: i64) -> u64 {
        u64::try_from(value).unwrap_or_else(|_| {
            self.fail(field, NEGATIVE);
            0
        })
    }

    fn count(&mut self, field: &str, value: i32) -> u32 {
        u32::try_from(value).unwrap_or_else(|_| {
            self.fail(field, NEGATIVE);
            0
        })
    }

    /// A number of milliseconds; zero is the default.
    fn millis(&mut self, field: &str, value: i64, default: i64) -> i64 {
        match value {
            0 => default,
            value if value < 0 => {
                self.fail(field, NEGATIVE);
                default
            }
            value => value,
        }
    }

    /// A member of an enum, by its number.
    fn member<T: TryFrom<i32>>(&mut self, field: &str, number: i32) -> Option<T> {
        let member = T::try_from(number).ok();
        if member.is_none() {
            self.fail(field, format!("{number} is no value of this enum"));
        }
        member
    }

    fn id<T: FromStr<Err = ParseIdError>>(&mut self, field: &str, text: &str) -> Option<T> {
        text.parse().map_err(|error: ParseIdError| self.fail(field, error.to_string())).ok()
    }

    /// Takes over what another reader read, and what it found wrong.
    fn take<T>(&mut self, read: Read<T>) -> Option<T> {
        read.map_err(|found| self.found.extend(found)).ok()
    }

    /// A message that must be there, read by `read`.
    fn message<M, T>(
        &mut self,
        field: &str,
        message: Option<M>,
        read: impl FnOnce(&str, M) -> Read<T>,
    ) -> Option<T> {
        let Some(message) = message else {
            self.fail(field, "must be set");
            return None;
        };
        let read = read(&self.name(field), message);
        self.take(read)
    }

    fn most<K: Eq + Hash, V>(&mut self, field: &str, map: &HashMap<K, V>, most: usize) {
        if map.len() > most {
            self.fail(field, format!("at most {most} entries"));
        }
    }

    fn done<T>(self, value: Option<T>) -> Read<T> {
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            _ => Err(self.found),
        }
    }
}

/// Numbers of the core that the wire holds as signed ones; what is too large for it is its largest.
fn wide(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// As [`wide`], for small numbers.
fn narrow(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
