//! A copy of the embedded database while it is in use, and the files that its rows name.

use std::path::Path;

use futures::TryStreamExt;
use sea_orm::sqlx::{
    self, ConnectOptions, Connection, Row, SqliteConnection, sqlite::SqliteConnectOptions,
};
use uuid::Uuid;

use super::super::{Error, Result};

/// What the rows say is stored.
#[derive(Debug, Default)]
pub struct Files {
    pub logs: Vec<Log>,
    /// Names of the objects of blobs.
    pub objects: Vec<String>,
}

/// A stream of a lease.
#[derive(Debug)]
pub struct Log {
    pub lease: Uuid,
    pub stream: String,
    /// Bytes that are durable.
    pub size: u64,
    pub packed: bool,
}

fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |source| Error::Database { action, source: Box::new(source) }
}

/// Copies the database in one read transaction. Others go on to write it meanwhile.
pub async fn copy(database: &Path, to: &Path) -> Result<()> {
    let failed = failed("copy the database");
    let options = SqliteConnectOptions::new().filename(database).create_if_missing(false);
    let mut from = options.disable_statement_logging().connect().await.map_err(&failed)?;
    let to = to.to_string_lossy().into_owned();
    sqlx::query("VACUUM INTO ?").bind(to).execute(&mut from).await.map_err(&failed)?;
    from.close().await.map_err(&failed)
}

/// What a copy of a database names. Nobody else may use it.
pub async fn files(database: &Path) -> Result<Files> {
    let failed = failed("read the copy of the database");
    let options = SqliteConnectOptions::new().filename(database).read_only(true);
    let mut copy = options.disable_statement_logging().connect().await.map_err(&failed)?;
    let files = read(&mut copy).await.map_err(&failed)?;
    copy.close().await.map_err(&failed)?;
    Ok(files)
}

async fn read(copy: &mut SqliteConnection) -> sqlx::Result<Files> {
    let mut files = Files::default();
    let mut rows =
        sqlx::query("SELECT lease, stream, size, packed FROM log WHERE size > 0").fetch(&mut *copy);
    while let Some(row) = rows.try_next().await? {
        let size: i64 = row.try_get("size")?;
        files.logs.push(Log {
            lease: row.try_get("lease")?,
            stream: row.try_get("stream")?,
            size: u64::try_from(size).unwrap_or_default(),
            packed: row.try_get("packed")?,
        });
    }
    drop(rows);
    let mut rows = sqlx::query("SELECT object FROM blob").fetch(&mut *copy);
    while let Some(row) = rows.try_next().await? {
        files.objects.push(row.try_get("object")?);
    }
    Ok(files)
}
