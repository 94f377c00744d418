//! What the machine can do at best, measured in the same run: the denominators of all ratios.

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use kiln_server::store::sql;
use sea_orm::{ConnectOptions, ConnectionTrait};
use tokio_postgres::NoTls;

const CLIENTS: usize = 16;
const ROWS: i64 = 20_000;
const RUN: Duration = Duration::from_secs(5);

/// "Update a row and insert an event" transactions a second, 16 clients, prepared statements.
pub(crate) async fn transactions(url: &str) -> Result<f64> {
    let setup = connect(url).await?;
    setup
        .batch_execute(
            "CREATE TABLE yardstick (id bigint PRIMARY KEY, state text NOT NULL, version bigint NOT NULL);
             CREATE TABLE yardstick_event (id bigserial PRIMARY KEY, job bigint NOT NULL, change text NOT NULL);",
        )
        .await?;
    setup
        .execute(
            "INSERT INTO yardstick SELECT n, 'queued', 1 FROM generate_series(0, $1::bigint - 1) n",
            &[&ROWS],
        )
        .await?;
    let done = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let (url, done) = (url.to_owned(), Arc::clone(&done));
        clients.spawn(async move { client(&url, i64::try_from(number)?, start, &done).await });
    }
    while let Some(result) = clients.join_next().await {
        result??;
    }
    let rate = rate(done.load(Ordering::Relaxed), start.elapsed());
    setup.batch_execute("DROP TABLE yardstick, yardstick_event").await?;
    Ok(rate)
}

async fn client(url: &str, number: i64, start: Instant, done: &AtomicU64) -> Result<()> {
    let mut client = connect(url).await?;
    let update = client
        .prepare("UPDATE yardstick SET state = $2, version = version + 1 WHERE id = $1")
        .await?;
    let insert =
        client.prepare("INSERT INTO yardstick_event (job, change) VALUES ($1, $2)").await?;
    let mut id = number;
    while start.elapsed() < RUN {
        id = (id + 7_919) % ROWS;
        let transaction = client.transaction().await?;
        transaction.execute(&update, &[&id, &"running"]).await?;
        transaction.execute(&insert, &[&id, &"{\"kind\":\"job\",\"status\":\"running\"}"]).await?;
        transaction.commit().await?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.context("connect to Postgres")?;
    tokio_util::task::TaskTracker::new().spawn(connection);
    Ok(client)
}

/// Jobs a second of which the rows are inserted, and nothing else: those of a finished run, from its database into an
/// empty one of the same form, durably, with a group of jobs in each transaction.
pub(crate) async fn inserts(data: &Path, jobs: usize) -> Result<f64> {
    const GROUP: usize = 100;
    let folder = tempfile::TempDir::new()?;
    let url = format!("sqlite:{}", folder.path().join("rows.db").display());
    let sql = kiln_server::store::sql::connect(&url, &sql::Options::default()).await?;
    sql.migrate().await?;
    sql.close().await;
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    let into = sea_orm::Database::connect(options).await?;
    for setting in [
        "PRAGMA synchronous=FULL".to_owned(),
        format!("ATTACH DATABASE '{}' AS run", data.join("kiln.db").display()),
        "INSERT INTO project SELECT * FROM run.project".to_owned(),
    ] {
        into.execute_unprepared(&setting).await?;
    }
    let start = Instant::now();
    for from in (0..jobs).step_by(GROUP) {
        let rows = [("build", "id"), ("job", "build"), ("lease", "build"), ("event", "build")].map(
            |(table, column)| {
                format!(
                    "INSERT INTO {table} SELECT * FROM run.{table} \
                     WHERE {column} IN (SELECT id FROM picked);"
                )
            },
        );
        let text = format!(
            "BEGIN IMMEDIATE; CREATE TEMP TABLE picked AS SELECT id FROM run.build \
             ORDER BY created_at, id LIMIT {GROUP} OFFSET {from}; {} \
             INSERT INTO job_spec SELECT s.* FROM run.job_spec s JOIN run.job j ON j.id=s.job \
             WHERE j.build IN (SELECT id FROM picked); DROP TABLE picked; COMMIT;",
            rows.concat()
        );
        into.execute_unprepared(&text).await?;
    }
    let rate = rate(jobs as u64, start.elapsed());
    into.close().await?;
    Ok(rate)
}

/// A database of its own on the server of the rig.
pub(crate) struct Database {
    pub(crate) url: String,
    admin: tokio_postgres::Client,
    name: String,
}

impl Database {
    pub(crate) async fn create(server: &str) -> Result<Self> {
        let admin = connect(server).await?;
        let name = format!("kiln_bench_{}", std::process::id());
        admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name}")).await?;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        for setting in ["fsync", "synchronous_commit"] {
            let value: String = admin.query_one(&format!("SHOW {setting}"), &[]).await?.get(0);
            if value == "off" {
                let text = format!("note: Postgres runs with {setting}=off, no commit is durable");
                super::report::trouble(&text);
            }
        }
        let (base, query) =
            server.split_once('?').map_or((server, String::new()), |(a, b)| (a, format!("?{b}")));
        let base = base.rsplit_once('/').map_or(base, |(base, _)| base);
        Ok(Self { url: format!("{base}/{name}{query}"), admin, name })
    }

    pub(crate) async fn drop(self) -> Result<()> {
        Ok(self.admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await?)
    }
}

/// Median of one durable commit on an idle database.
pub(crate) async fn commit(url: &str) -> Result<Duration> {
    let client = connect(url).await?;
    client.batch_execute("CREATE TABLE yardstick_commit (n bigint)").await?;
    let insert = client.prepare("INSERT INTO yardstick_commit VALUES (1)").await?;
    let mut times = vec![];
    for _ in 0..200 {
        let start = Instant::now();
        client.execute(&insert, &[]).await?;
        times.push(start.elapsed());
    }
    client.batch_execute("DROP TABLE yardstick_commit").await?;
    Ok(percentile(&mut times, 50))
}

/// Median of writing a page to a file and having it on disk.
pub(crate) fn file_sync() -> Result<Duration> {
    let mut file = tempfile::tempfile()?;
    let mut times = vec![];
    for _ in 0..200 {
        let start = Instant::now();
        std::io::Write::write_all(&mut file, &[0; 4_096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    Ok(percentile(&mut times, 50))
}

/// Median of a call of a health service with nothing behind it.
pub(crate) async fn grpc_round_trip() -> Result<Duration> {
    let farm = super::farm::Farm::start("").await?;
    let mut times = vec![];
    for _ in 0..200 {
        let start = Instant::now();
        farm.client.list_projects(kiln_sdk::v1::ListProjectsRequest {}).await?;
        times.push(start.elapsed());
    }
    farm.stop().await?;
    Ok(percentile(&mut times, 50))
}

/// Median of a bare fork, exec and wait of `true`.
pub(crate) fn fork_exec() -> Result<Duration> {
    let mut times = vec![];
    for _ in 0..200 {
        let start = Instant::now();
        Command::new("/bin/true").status().context("run /bin/true")?;
        times.push(start.elapsed());
    }
    Ok(percentile(&mut times, 50))
}

/// Happenings a second.
pub(crate) fn rate(count: u64, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
    let count = count as f64;
    count / time.as_secs_f64()
}

/// The given percentile of unsorted times.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times
        .get((times.len() * percent / 100).min(times.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}
