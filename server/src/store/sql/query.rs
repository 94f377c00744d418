//! Statements as text, for tables whose rows are read and written in few ways.

use sea_orm::{ConnectionTrait, EntityTrait, QueryResult, Statement, TryGetable, Value};

use super::{
    super::Result,
    error::{failed, unsigned},
    meta, set,
};

fn statement(conn: &impl ConnectionTrait, text: &str, values: Vec<Value>) -> Statement {
    Statement::from_sql_and_values(conn.get_database_backend(), text, values)
}

/// Returns how many rows were changed.
pub(super) async fn execute(
    conn: &impl ConnectionTrait,
    action: &'static str,
    text: &str,
    values: Vec<Value>,
) -> Result<u64> {
    let done = conn.execute_raw(statement(conn, text, values)).await.map_err(failed(action))?;
    Ok(done.rows_affected())
}

pub(super) async fn all(
    conn: &impl ConnectionTrait,
    action: &'static str,
    text: &str,
    values: Vec<Value>,
) -> Result<Vec<QueryResult>> {
    conn.query_all_raw(statement(conn, text, values)).await.map_err(failed(action))
}

/// A column of a row.
pub(super) fn get<T: TryGetable>(row: &QueryResult, column: &'static str) -> Result<T> {
    row.try_get("", column).map_err(failed("read a column"))
}

/// A size or a checksum.
pub(super) fn get_unsigned<T: TryFrom<i64>>(
    row: &QueryResult,
    table: &'static str,
    column: &'static str,
) -> Result<T> {
    unsigned(table, column, get(row, column)?)
}

/// A size as a column holds it.
pub(super) fn signed(value: u64) -> Value {
    i64::try_from(value).unwrap_or(i64::MAX).into()
}

/// The identity of a store beside the database; `fresh` is recorded where none is.
pub(super) async fn identity(
    conn: &impl ConnectionTrait,
    name: &str,
    fresh: Option<&str>,
) -> Result<Option<String>> {
    let action = "read the identity of a store";
    let key = format!("store.{name}");
    if let Some(fresh) = fresh {
        let row = meta::Model { key: key.clone(), value: fresh.to_owned() };
        let tail = "ON CONFLICT (\"key\") DO NOTHING";
        set::insert(conn, &[row], tail).await.map_err(failed(action))?;
    }
    let row = meta::Entity::find_by_id(key).one(conn).await.map_err(failed(action))?;
    Ok(row.map(|row| row.value))
}
