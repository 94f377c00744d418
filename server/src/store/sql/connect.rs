//! Connections, and what is set on them.

use std::{sync::Arc, time::Duration};

use sea_orm::{
    SqlxPostgresConnector, SqlxSqliteConnector,
    sqlx::{
        self, ConnectOptions, Connection, PgConnection,
        postgres::{PgConnectOptions, PgPoolOptions},
        sqlite::{
            SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions,
            SqliteSynchronous,
        },
    },
};

use super::{
    super::{Error, Result},
    Sql,
    bound::{ANSWER, Bound, Bounded, is_alive},
    ssl::Ssl,
    tx,
};
use crate::metrics::Metrics;

/// Prepared statements that a connection keeps: each kind of statement has a few sizes (see `set`).
const STATEMENTS: usize = 512;
/// A statement that takes longer is a warning.
const SLOW: Duration = Duration::from_secs(1);
/// How long a caller waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(30);
/// How long the first answer of Postgres may take.
const REACH: Duration = Duration::from_secs(10);
/// How long SQLite waits for the lock of another process.
const BUSY: Duration = Duration::from_secs(10);
/// Postgres ends a transaction whose server says nothing for so long: one that died without a word would hold its rows
/// until the network gives up. Shorter than what waits for those rows.
const SILENT: &str = "10s";
/// A connection that was idle for longer is asked whether it still lives.
const IDLE: Duration = Duration::from_secs(5);

/// How to use a database.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections at most.
    pub connections: u32,
    /// SQLite: a commit is on disk before it is acknowledged. Without, the last commits may be lost with the machine.
    pub durable: bool,
    /// Where it is noted how long answers take.
    pub metrics: Metrics,
}

impl Default for Options {
    fn default() -> Self {
        Self { connections: 16, durable: true, metrics: Metrics::default() }
    }
}

impl Options {
    fn bound(&self, limit: Duration) -> Bound {
        Bound { limit, metrics: self.metrics.clone() }
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
        .after_release(|connection, _| Box::pin(is_at_rest(connection)))
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
        // A file answers, or fails.
        reader: Bounded::new(
            SqlxSqliteConnector::from_sqlx_sqlite_pool(reader),
            options.bound(Duration::MAX),
        ),
        writer: Bounded::new(
            SqlxSqliteConnector::from_sqlx_sqlite_pool(writer),
            options.bound(Duration::MAX),
        ),
        queue: Some(Arc::new(tx::Queue::default())),
    })
}

async fn postgres(url: &str, options: &Options) -> Result<Sql> {
    let (url, ssl) = Ssl::of(url).map_err(refused)?;
    let base: PgConnectOptions = url.parse().map_err(|_| refused("the URL is not understood"))?;
    let base = ssl
        .of_pool(base)
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
            ("idle_in_transaction_session_timeout", SILENT),
        ])
        .log_statements(debug()?)
        .log_slow_statements(warn()?, SLOW);
    reach(&base).await?;
    let pool = PgPoolOptions::new()
        .max_connections(options.connections.max(2))
        .acquire_timeout(ACQUIRE)
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move { Ok(meta.idle_for < IDLE || is_alive(connection).await?) })
        })
        .after_release(|connection, _| Box::pin(is_alive(connection)))
        .connect_with(base)
        .await
        .map_err(refused)?;
    let pool = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
    let pool = Bounded::new(pool, options.bound(ANSWER));
    Ok(Sql { reader: pool.clone(), writer: pool, queue: None })
}

/// Says why Postgres can't be used: the pool would only say that it waited.
async fn reach(base: &PgConnectOptions) -> Result<()> {
    let answered = tokio::time::timeout(REACH, PgConnection::connect_with(base)).await;
    let source: Box<dyn std::error::Error + Send + Sync> = match answered {
        Ok(Ok(connection)) => {
            // It has answered; how it ends is no matter.
            let _ = connection.close().await;
            return Ok(());
        }
        Ok(Err(error)) => error.into(),
        Err(silent) => silent.into(),
    };
    let at = base.get_socket().map_or_else(
        || format!("{}:{}", base.get_host(), base.get_port()),
        |socket| format!("{} port {}", socket.display(), base.get_port()),
    );
    let database = base.get_database().unwrap_or_else(|| base.get_username()).to_owned();
    Err(refused(Unreachable { at, database, source }))
}

/// Where Postgres was looked for; never the password.
#[derive(Debug, thiserror::Error)]
#[error(
    "Postgres at {at}, database {database:?}, can't be used; check that it runs there, and what `database` says"
)]
struct Unreachable {
    at: String,
    database: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Where the disk is full SQLite ends a transaction itself, and its driver goes on to count it as open: what follows would
/// be a part of it, said to be committed without being so. Such a connection is closed.
async fn is_at_rest(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    if connection.is_in_transaction() {
        // The rollback of what was dropped is on its way; an answer comes behind it.
        connection.ping().await?;
    }
    Ok(!connection.is_in_transaction())
}

/// The levels are of a crate that is not ours to name.
fn debug<T: std::str::FromStr>() -> Result<T> {
    "debug".parse().map_err(|_| refused("the log level is not understood"))
}

fn warn<T: std::str::FromStr>() -> Result<T> {
    "warn".parse().map_err(|_| refused("the log level is not understood"))
}
