//! How fast a log goes from a job's process until it is sealed, and what it costs the server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use kiln_agent::backend;
use kiln_sdk::v1::{GetBuildRequest, ReadLogRequest};

use super::{
    farm::{self, Farm},
    report, yardstick,
};

/// Megabytes of a log before the one that counts: what the server needs at all is in memory then.
const WARM_UP: u64 = 50;
const FOLLOWERS: usize = 100;
/// Megabytes of a short and of a long log that all of them follow.
const FOLLOWED: [u64; 2] = [10, 30];
/// Megabytes that the server's memory may grow by while a log arrives.
const FLAT: f64 = 64.0;
/// Bytes of one read.
const PIECE: i64 = 1 << 20;

/// A log of 100-byte lines, printed as fast as it is read.
pub(crate) async fn throughput(name: &str, database: &str, size: u64, raw: f64) -> Result<()> {
    let farm = Farm::start(database).await?;
    farm.agent("agent", backend::Config::default()).await?;
    farm.connected(1, 0).await?;
    let warm = print(&farm, WARM_UP).await?;
    sealed(&farm, &warm, WARM_UP).await?;
    let before = farm.server.resident()?;
    farm.server.peak()?;

    let text = lines(&farm, size)?;
    let (start, cpu) = (Instant::now(), farm.server.cpu());
    let job = job(&farm, &text).await?;
    sealed(&farm, &job, size).await?;
    let time = start.elapsed();
    let rate = yardstick::rate(size, time);
    report::at_least(name, rate, "MB/s", raw, 0.25);
    let cpu = farm.server.cpu().saturating_sub(cpu).as_secs_f64();
    let cpu = cpu / yardstick::rate(size, Duration::from_secs(100));
    report::at_most(&format!("{name}_cpu_of_server"), cpu, "s/100MB", 1.0, 1.0);
    let grown = (farm.server.peak()? - before).max(0.0);
    report::at_most(&format!("{name}_memory_growth_of_server"), grown, "MB", FLAT, 1.0);
    compare(&farm, &job, &text).await?;

    let name = format!("{name}_memory_of_server_with_{FOLLOWERS}_followers");
    let [short, long] = FOLLOWED;
    let short = followers(&farm, short).await?;
    report::at_most(&name, followers(&farm, long).await?, "MB", short, 1.25);
    farm.stop().await
}

/// Megabytes of the server at most while many read a log of so many from its first byte to its end.
async fn followers(farm: &Farm, megabytes: u64) -> Result<f64> {
    let job = print(farm, megabytes).await?;
    farm.server.peak()?;
    stream::iter(0..FOLLOWERS)
        .map(|_| follow(farm, &job))
        .buffer_unordered(FOLLOWERS)
        .try_for_each(|bytes| async move {
            ensure!(bytes == megabytes * 1_000_000, "a follower got {bytes} bytes");
            Ok(())
        })
        .await?;
    farm.server.peak()
}

/// A file of so many megabytes.
fn lines(farm: &Farm, megabytes: u64) -> Result<std::path::PathBuf> {
    let path = farm.folder.path().join("lines");
    let mut text = Vec::with_capacity(usize::try_from(megabytes)? * 1_000_000);
    for number in 0..megabytes * 10_000 {
        std::io::Write::write_fmt(&mut text, format_args!("{number:<99}\n"))?;
    }
    std::fs::write(&path, text)?;
    Ok(path)
}

async fn print(farm: &Farm, megabytes: u64) -> Result<String> {
    job(farm, &lines(farm, megabytes)?).await
}

/// A job that prints a file.
async fn job(farm: &Farm, text: &std::path::Path) -> Result<String> {
    let mut job = farm::shell_job(format!("cat {}", text.display()));
    job.resources = Some(kiln_sdk::v1::Resources { log_bytes: i64::MAX / 2, ..Default::default() });
    let build = farm.submit(job, 1).await?;
    let jobs = farm.client.get_build(GetBuildRequest { build }).await?.jobs;
    Ok(jobs.into_iter().next().context("the build has no job")?.id)
}

/// Until the log is sealed with so many megabytes.
async fn sealed(farm: &Farm, job: &str, megabytes: u64) -> Result<()> {
    let start = Instant::now();
    loop {
        let request = ReadLogRequest { job: job.to_owned(), limit: 1, ..Default::default() };
        let held = farm.client.read_log(request).await.ok().and_then(|answer| answer.log);
        match held {
            Some(log) if log.complete => {
                let wanted = i64::try_from(megabytes * 1_000_000)?;
                ensure!(log.size == wanted, "{} of {wanted} bytes arrived", log.size);
                return Ok(());
            }
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        ensure!(start.elapsed() < farm::PATIENCE, "the log is not sealed");
    }
}

/// The bytes that the server gives back are those of the file.
async fn compare(farm: &Farm, job: &str, text: &std::path::Path) -> Result<()> {
    let text = std::fs::read(text)?;
    let mut at = 0;
    while at < text.len() {
        let offset = i64::try_from(at)?;
        let request =
            ReadLogRequest { job: job.to_owned(), offset, limit: PIECE, ..Default::default() };
        let data = farm.client.read_log(request).await?.data;
        ensure!(!data.is_empty() && text[at..].starts_with(&data), "another byte behind {at}");
        at += data.len();
    }
    Ok(())
}

/// Bytes of a log that is followed to its end.
async fn follow(farm: &Farm, job: &str) -> Result<u64> {
    let mut bytes = 0;
    let mut pieces =
        farm.client.logs(kiln_sdk::LogRequest { job: job.to_owned(), ..Default::default() });
    while let Some(piece) = pieces.try_next().await? {
        bytes += piece.data.len() as u64;
    }
    Ok(bytes)
}
