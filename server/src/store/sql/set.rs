//! Many rows in one statement.
//!
//! A text that was seen before need not be prepared again, so sets come in few sizes: an insert is cut into pieces of
//! these sizes, a list or an update is filled up with its last member, which changes nothing.

use std::fmt::Write;

use sea_orm::{
    ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityName, EntityTrait, IdenStatic, Iterable,
    ModelTrait, QueryFilter, QueryOrder, QueryResult, Select, Statement, Value,
};
use uuid::Uuid;

use super::{
    super::{Error, Result},
    error::failed,
};

/// Rows of a statement at most: 500 rows of the widest table are half of the variables that SQLite allows (32,766).
pub(super) const MOST: usize = 500;

type Column<M> = <<M as ModelTrait>::Entity as EntityTrait>::Column;

/// The largest size that is not above `rows`.
fn floor(rows: usize) -> usize {
    match rows {
        MOST.. => MOST,
        256.. => 256,
        128.. => 128,
        16.. => rows / 16 * 16,
        _ => rows,
    }
}

/// The smallest size that is not below `rows`, which is at most [`MOST`].
fn ceil(rows: usize) -> usize {
    match rows {
        0..=4 => rows,
        5..=16 => rows.next_multiple_of(4),
        17..=128 => rows.next_multiple_of(16),
        129..=256 => 256,
        _ => MOST,
    }
}

/// The members and as many more of the last as make a size. The list is at most [`MOST`] long.
pub(super) fn padded<T: Clone>(members: &[T]) -> Vec<T> {
    let mut list = members.to_vec();
    if let Some(last) = members.last() {
        list.resize(ceil(members.len()), last.clone());
    }
    list
}

fn table<M: ModelTrait>() -> &'static str {
    <M::Entity as EntityName>::table_name(&M::Entity::default())
}

/// The place of a value; values come in the order of their places. SQLite would look up a number as a name, for each
/// value in the list of all names: a statement of a thousand values took half a million steps to bind.
pub(super) fn push_place(text: &mut String, backend: DbBackend, number: usize) {
    match backend {
        DbBackend::Sqlite => text.push('?'),
        _ => {
            // Writing to a string can't fail.
            let _ = write!(text, "${number}");
        }
    }
}

/// `($1,$2),($3,$4)`
pub(super) fn push_values(text: &mut String, backend: DbBackend, rows: usize, columns: usize) {
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ",(" });
        for column in 1..=columns {
            text.push_str(if column == 1 { "" } else { "," });
            push_place(text, backend, row * columns + column);
        }
        text.push(')');
    }
}

fn insert_text<M: ModelTrait>(backend: DbBackend, rows: usize, tail: &str) -> String {
    let columns: Vec<_> = Column::<M>::iter().map(|column| column.as_str()).collect();
    let mut text =
        format!("INSERT INTO \"{}\" (\"{}\") VALUES ", table::<M>(), columns.join("\",\""));
    push_values(&mut text, backend, rows, columns.len());
    text.push(' ');
    text.push_str(tail);
    text
}

fn values<M: ModelTrait>(models: &[M]) -> Vec<Value> {
    let columns: Vec<_> = Column::<M>::iter().collect();
    models.iter().flat_map(|model| columns.iter().map(|column| model.get(*column))).collect()
}

/// Pieces of the sizes that are prepared.
fn pieces<M>(mut models: &[M]) -> impl Iterator<Item = &[M]> {
    std::iter::from_fn(move || {
        let (piece, rest) = models.split_at(floor(models.len()));
        models = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Inserts rows; `tail` is what follows the values: `ON CONFLICT …`.
pub(super) async fn insert<M: ModelTrait>(
    conn: &impl ConnectionTrait,
    models: &[M],
    tail: &str,
) -> Result<(), DbErr> {
    let backend = conn.get_database_backend();
    for piece in pieces(models) {
        let text = insert_text::<M>(backend, piece.len(), tail);
        conn.execute_raw(Statement::from_sql_and_values(backend, text, values(piece))).await?;
    }
    Ok(())
}

/// Inserts rows; returns what `tail` says: `… RETURNING …`.
pub(super) async fn insert_returning<M: ModelTrait>(
    conn: &impl ConnectionTrait,
    models: &[M],
    tail: &str,
) -> Result<Vec<QueryResult>, DbErr> {
    let backend = conn.get_database_backend();
    let mut returned = vec![];
    for piece in pieces(models) {
        let text = insert_text::<M>(backend, piece.len(), tail);
        let statement = Statement::from_sql_and_values(backend, text, values(piece));
        returned.extend(conn.query_all_raw(statement).await?);
    }
    Ok(returned)
}

/// `UPDATE t SET a = v.column2 … FROM (VALUES …) AS v WHERE t.key = v.column1`; both engines name columns so.
fn update_text<M: ModelTrait>(
    backend: DbBackend,
    rows: usize,
    key: Column<M>,
    columns: &[Column<M>],
    version: Option<Column<M>>,
) -> String {
    let table = table::<M>();
    let mut text = format!("UPDATE \"{table}\" SET ");
    for (index, column) in columns.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(text, "{comma}\"{}\"=v.column{}", column.as_str(), index + 2);
    }
    text.push_str(" FROM (VALUES ");
    push_values(&mut text, backend, rows, columns.len() + 1);
    let key = key.as_str();
    let _ = write!(text, ") AS v WHERE \"{table}\".\"{key}\"=v.column1");
    if let Some(version) = version {
        let place = columns.iter().position(|column| column.as_str() == version.as_str());
        let place = place.map_or(0, |place| place + 2);
        let version = version.as_str();
        let _ = write!(
            text,
            " AND \"{table}\".\"{version}\"=v.column{place}-1 RETURNING \"{table}\".\"{key}\""
        );
    }
    text
}

fn update_statement<M: ModelTrait>(
    conn: &impl ConnectionTrait,
    models: &[M],
    key: Column<M>,
    columns: &[Column<M>],
    version: Option<Column<M>>,
) -> Statement {
    let models = padded(models);
    let backend = conn.get_database_backend();
    let text = update_text::<M>(backend, models.len(), key, columns, version);
    let values = models.iter().flat_map(|model| {
        std::iter::once(model.get(key)).chain(columns.iter().map(|column| model.get(*column)))
    });
    Statement::from_sql_and_values(backend, text, values)
}

/// Saves these columns of rows that exist.
pub(super) async fn update<M: ModelTrait>(
    conn: &impl ConnectionTrait,
    models: &[M],
    key: Column<M>,
    columns: &[Column<M>],
) -> Result<(), DbErr> {
    for piece in models.chunks(MOST) {
        conn.execute_raw(update_statement(conn, piece, key, columns, None)).await?;
    }
    Ok(())
}

/// The same where the version of the row is one below that of the model; returns the keys that were saved.
pub(super) async fn update_version<M: ModelTrait>(
    conn: &impl ConnectionTrait,
    models: &[M],
    key: Column<M>,
    columns: &[Column<M>],
    version: Column<M>,
) -> Result<Vec<Uuid>, DbErr> {
    let mut saved = Vec::with_capacity(models.len());
    for piece in models.chunks(MOST) {
        let statement = update_statement(conn, piece, key, columns, Some(version));
        for row in conn.query_all_raw(statement).await? {
            saved.push(row.try_get_by_index(0)?);
        }
    }
    Ok(saved)
}

/// The rows of a query, as core types.
pub(super) async fn rows<R, E>(
    conn: &impl ConnectionTrait,
    select: Select<E>,
    action: &'static str,
) -> Result<Vec<R>>
where
    E: EntityTrait,
    R: TryFrom<E::Model, Error = Error>,
{
    let models = select.all(conn).await.map_err(failed(action))?;
    models.into_iter().map(R::try_from).collect()
}

/// The row of a query for one.
pub(super) async fn one<R, E>(
    conn: &impl ConnectionTrait,
    select: Select<E>,
    action: &'static str,
) -> Result<Option<R>>
where
    E: EntityTrait,
    R: TryFrom<E::Model, Error = Error>,
{
    select.one(conn).await.map_err(failed(action))?.map(R::try_from).transpose()
}

/// Those rows of a query whose column is one of the ids, in the order of that column.
pub(super) async fn among<R, E>(
    conn: &impl ConnectionTrait,
    select: Select<E>,
    column: E::Column,
    ids: impl IntoIterator<Item = Uuid>,
    action: &'static str,
) -> Result<Vec<R>>
where
    E: EntityTrait,
    R: TryFrom<E::Model, Error = Error>,
{
    let mut ids: Vec<Uuid> = ids.into_iter().collect();
    ids.sort_unstable();
    ids.dedup();
    let mut found = Vec::with_capacity(ids.len());
    for piece in ids.chunks(MOST) {
        let select = select.clone().filter(column.is_in(padded(piece))).order_by_asc(column);
        found.extend(rows::<R, E>(conn, select, action).await?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_few_and_lose_nothing() {
        for rows in 1..=MOST {
            assert!(floor(rows) <= rows && floor(rows) > 0 && ceil(rows) >= rows);
            let cut: usize = pieces(&vec![0; rows]).map(<[i32]>::len).sum();
            assert_eq!(cut, rows);
        }
        let sizes: std::collections::BTreeSet<_> =
            (1..=MOST).flat_map(|rows| [floor(rows), ceil(rows)]).collect();
        assert!(sizes.len() < 30, "{sizes:?}");
    }
}
