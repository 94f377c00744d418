//! `make bench`: figures of the product beside what the same machine can do at best in the same run.
//!
//! `kiln-bench [NAME…]` runs those whose name begins with one of the words. Postgres figures need `KILN_TEST_POSTGRES`.

mod farm;
mod jobs;
mod logs;
mod report;
mod upload;
mod yardstick;

use anyhow::Result;

const JOBS: usize = 4_000;

#[tokio::main]
async fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.starts_with(word.as_str()));
    let fork_exec = yardstick::fork_exec()?;
    report::figure("yardstick_fork_exec", fork_exec.as_secs_f64() * 1e3, "ms");

    if is_wanted("jobs_sqlite") {
        jobs::throughput("jobs_sqlite", "", JOBS, None).await?;
    }
    if is_wanted("start_sqlite") {
        let yardstick = fork_exec + yardstick::file_sync()? + yardstick::grpc_round_trip().await?;
        jobs::latency("start_sqlite", "", yardstick).await?;
    }
    if is_wanted("log_sqlite") {
        let raw = upload::raw_upload().await?;
        report::figure("yardstick_upload", raw, "MB/s");
        logs::throughput("log_sqlite", "", raw).await?;
    }
    let Ok(postgres) = std::env::var("KILN_TEST_POSTGRES") else {
        report::trouble("skipped: KILN_TEST_POSTGRES is not set");
        return Ok(());
    };
    if is_wanted("jobs_postgres") {
        let database = yardstick::Database::create(&postgres).await?;
        let transactions = yardstick::transactions(&database.url).await?;
        report::figure("yardstick_transactions", transactions, "/s");
        jobs::throughput("jobs_postgres", &database.url, JOBS, Some(transactions)).await?;
        database.drop().await?;
    }
    if is_wanted("start_postgres") {
        let database = yardstick::Database::create(&postgres).await?;
        let commit = yardstick::commit(&database.url).await?;
        let yardstick = fork_exec + commit + yardstick::grpc_round_trip().await?;
        jobs::latency("start_postgres", &database.url, yardstick).await?;
        database.drop().await?;
    }
    Ok(())
}
