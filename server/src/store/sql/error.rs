//! What a database says, as [`Error`].

use std::borrow::Cow;

use sea_orm::{DbErr, RuntimeErr, SqlErr, sqlx};
use serde::{Serialize, de::DeserializeOwned};

use super::super::{Error, Result};

/// What an error of the database means while it was asked to do this.
pub(super) fn failed(action: &'static str) -> impl Fn(DbErr) -> Error {
    move |error| match code(&error).as_deref() {
        // Postgres: serialisation failure, deadlock, lock not available. SQLite: busy, locked, busy snapshot.
        Some("40001" | "40P01" | "55P03" | "5" | "6" | "261" | "517") => Error::Conflict,
        _ => Error::Database { action, source: Box::new(error) },
    }
}

/// The same for an insert: a name that is taken is an answer.
pub(super) fn taken(
    action: &'static str,
    what: &'static str,
    name: &str,
) -> impl FnOnce(DbErr) -> Error {
    move |error| match error.sql_err() {
        Some(SqlErr::UniqueConstraintViolation(_)) => Error::Exists { what, name: name.to_owned() },
        _ => failed(action)(error),
    }
}

fn code(error: &DbErr) -> Option<String> {
    let (DbErr::Exec(RuntimeErr::SqlxError(error))
    | DbErr::Query(RuntimeErr::SqlxError(error))
    | DbErr::Conn(RuntimeErr::SqlxError(error))) = error
    else {
        return None;
    };
    match &**error {
        sqlx::Error::Database(error) => error.code().map(Cow::into_owned),
        _ => None,
    }
}

pub(super) fn corrupt(
    table: &'static str,
    column: &'static str,
    value: impl std::fmt::Display,
) -> Error {
    // A value may be long, and may be private.
    let value = value.to_string().chars().take(80).collect();
    Error::Corrupt { table, column, value }
}

/// A count or a size.
pub(super) fn unsigned<T: TryFrom<i64>>(
    table: &'static str,
    column: &'static str,
    value: i64,
) -> Result<T> {
    T::try_from(value).map_err(|_| corrupt(table, column, value))
}

pub(super) fn from_json<T: DeserializeOwned>(
    table: &'static str,
    column: &'static str,
    text: &str,
) -> Result<T> {
    serde_json::from_str(text).map_err(|error| corrupt(table, column, error))
}

pub(super) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("rows are plain data whose maps have words as keys")
}
