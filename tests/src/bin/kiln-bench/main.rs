//! `make bench`: figures of the product beside what the same machine can do at best in the same run.
//!
//! `kiln-bench [NAME…]` runs those whose name begins with one of the words. Postgres figures need `KILN_TEST_POSTGRES`,
//! those of containers `KILN_TEST_DOCKER` and `KILN_TEST_IMAGE`.

mod docker;
mod farm;
mod fleet;
mod jobs;
mod logs;
mod report;
mod server;
mod up;
mod upload;
mod yardstick;

use anyhow::Result;

const JOBS: usize = 4_000;
/// Jobs of a long queue.
const QUEUE: usize = 100_000;
/// Megabytes of a long log.
const LOG: u64 = 500;

#[tokio::main]
async fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.starts_with(word.as_str()));
    let fork_exec = yardstick::fork_exec()?;
    report::figure("yardstick_fork_exec", fork_exec.as_secs_f64() * 1e3, "ms");

    if is_wanted("jobs_sqlite") {
        let inserts = async |data: &std::path::Path| {
            let rate = yardstick::inserts(data, JOBS).await?;
            report::figure("yardstick_inserts", rate, "jobs/s");
            Ok(rate)
        };
        jobs::throughput("jobs_sqlite", "", JOBS, 0.5, inserts).await?;
    }
    if is_wanted("start_sqlite") {
        let yardstick = fork_exec + yardstick::file_sync()? + yardstick::grpc_round_trip().await?;
        jobs::latency("start_sqlite", "", yardstick).await?;
    }
    if is_wanted("log_sqlite") {
        let raw = upload::raw_upload().await?;
        report::figure("yardstick_upload", raw, "MB/s");
        logs::throughput("log_sqlite", "", LOG, raw).await?;
    }
    if is_wanted("fleet_sqlite") {
        fleet::fleet("fleet_sqlite", "").await?;
    }
    if is_wanted("up") {
        up::cold_start("up").await?;
    }
    match (std::env::var("KILN_TEST_DOCKER"), std::env::var("KILN_TEST_IMAGE")) {
        (Ok(host), Ok(image)) if is_wanted("container") => {
            docker::container("container", &host, &image).await?;
        }
        (Ok(_), Ok(_)) => {}
        _ => report::trouble("skipped: KILN_TEST_DOCKER or KILN_TEST_IMAGE is not set"),
    }
    if is_wanted("queue_sqlite") {
        jobs::queue("queue_sqlite", "", QUEUE).await?;
    }
    if let Ok(url) = std::env::var("KILN_TEST_POSTGRES") {
        return postgres(&url, is_wanted, fork_exec).await;
    }
    report::trouble("skipped: KILN_TEST_POSTGRES is not set");
    Ok(())
}

async fn postgres(
    server: &str,
    is_wanted: impl Fn(&str) -> bool,
    fork_exec: std::time::Duration,
) -> Result<()> {
    if is_wanted("jobs_postgres") {
        let database = yardstick::Database::create(server).await?;
        let transactions = yardstick::transactions(&database.url).await?;
        report::figure("yardstick_transactions", transactions, "/s");
        let known = async |_: &std::path::Path| Ok(transactions);
        jobs::throughput("jobs_postgres", &database.url, JOBS, 0.2, known).await?;
        database.drop().await?;
    }
    if is_wanted("start_postgres") {
        let database = yardstick::Database::create(server).await?;
        let commit = yardstick::commit(&database.url).await?;
        let yardstick = fork_exec + commit + yardstick::grpc_round_trip().await?;
        jobs::latency("start_postgres", &database.url, yardstick).await?;
        database.drop().await?;
    }
    if is_wanted("queue_postgres") {
        let database = yardstick::Database::create(server).await?;
        jobs::queue("queue_postgres", &database.url, QUEUE).await?;
        database.drop().await?;
    }
    Ok(())
}
