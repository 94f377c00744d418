//! Connections, and what is set on them.

use std::{sync::Arc, time::Duration};

use sea_orm::{
    SqlxPostgresConnector, SqlxSqliteConnector,
    sqlx::{
        ConnectOptions, Connection,
        postgres::{PgConnectOptions, PgPoolOptions},
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
    },
};

use super::{
    super::{Error, Result},
    Sql, tx,
};

/// Prepared statements that a connection keeps: each kind of statement has a few sizes (see `set`).
const STATEMENTS: usize = 512;
/// A statement that takes longer is a warning.
const SLOW: Duration = Duration::from_secs(1);
/// How long a caller waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(30);
/// How long SQLite waits for the lock of another process.
const BUSY: Duration = Duration::from_secs(10);
/// A connection that was idle for longer is asked whether it still lives.
const IDLE: Duration = Duration::from_secs(5);

/// How to use a database.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections at most.
    pub connections: u32,
    /// SQLite: a commit is on disk before it is acknowledged. Without, the last commits may be lost with the machine.
    pub durable: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { connections: 16, durable: true }
    }
}

/// Connects to `sqlite:PATH` or `postgres://…`. A SQLite file that is not there is made.
pub async fn connect(url: &str, options: &Options) -> Result<Sql> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        return sqlite(path.strip_prefix("//").unwrap_or(path), options).await;
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return postgres(url, options).await;
    }
    Err(refused("the database is sqlite:PATH or postgres://…"))
}

fn refused(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Database { action: "connect", source: why.into() }
}

async fn sqlite(path: &str, options: &Options) -> Result<Sql> {
    if path.is_empty() || path.contains(":memory:") {
        return Err(refused("SQLite needs a file: each connection would have a memory of its own"));
    }
    let synchronous =
        if options.durable { SqliteSynchronous::Full } else { SqliteSynchronous::Normal };
    let base = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(BUSY)
        .foreign_keys(true)
        .statement_cache_capacity(STATEMENTS)
        // 64 MiB: the queue and the open builds stay in memory.
        .pragma("cache_size", "-65536")
        .pragma("temp_store", "memory")
        // 16 MiB: a checkpoint writes a page that changed often only once.
        .pragma("wal_autocheckpoint", "4000")
        .pragma("journal_size_limit", "67108864")
        .log_statements(debug()?)
        .log_slow_statements(warn()?, SLOW);
    let writer = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_with(base.clone())
        .await
        .map_err(refused)?;
    let reader = SqlitePoolOptions::new()
        .max_connections(options.connections.max(1))
        .acquire_timeout(ACQUIRE)
        .test_before_acquire(false)
        .connect_with(base.read_only(true))
        .await
        .map_err(refused)?;
    Ok(Sql {
        reader: SqlxSqliteConnector::from_sqlx_sqlite_pool(reader),
        writer: SqlxSqliteConnector::from_sqlx_sqlite_pool(writer),
        queue: Some(Arc::new(tx::Queue::default())),
    })
}

async fn postgres(url: &str, options: &Options) -> Result<Sql> {
    let base: PgConnectOptions = url.parse().map_err(|_| refused("the URL is not understood"))?;
    let base = base
        .application_name("kiln")
        .statement_cache_capacity(STATEMENTS)
        // A prepared statement keeps its plan. One made while a table was small would go on to scan the whole of it
        // when it is large; every statement of ours has an index, so plans without one are not considered. Compiling
        // such short statements to machine code costs a hundred times what it saves.
        .options([
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("jit", "off"),
        ])
        .log_statements(debug()?)
        .log_slow_statements(warn()?, SLOW);
    let pool = PgPoolOptions::new()
        .max_connections(options.connections.max(2))
        .acquire_timeout(ACQUIRE)
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move { Ok(meta.idle_for < IDLE || connection.ping().await.is_ok()) })
        })
        .connect_with(base)
        .await
        .map_err(refused)?;
    let pool = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
    Ok(Sql { reader: pool.clone(), writer: pool, queue: None })
}

/// The levels are of a crate that is not ours to name.
fn debug<T: std::str::FromStr>() -> Result<T> {
    "debug".parse().map_err(|_| refused("the log level is not understood"))
}

fn warn<T: std::str::FromStr>() -> Result<T> {
    "warn".parse().map_err(|_| refused("the log level is not understood"))
}
