//! How many jobs a second go from Submit to Finish, and how soon one starts.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};

use super::{
    farm::{self, Farm},
    report, yardstick,
};

const AGENTS: usize = 8;
const CLIENTS: usize = 32;

/// Trivial jobs, one a build, submitted by many clients at once.
pub(crate) async fn throughput(
    name: &str,
    database: &str,
    jobs: usize,
    yardstick: Option<f64>,
) -> Result<()> {
    let farm = Farm::start(database).await?;
    for number in 0..AGENTS {
        farm.agent(&format!("agent-{number}"), true).await?;
    }
    let (start, cpu) = (Instant::now(), farm::cpu_time());
    stream::iter(0..jobs)
        .map(|_| farm.submit(farm::noop_job(), 1))
        .buffer_unordered(CLIENTS)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    let submitted = start.elapsed();
    farm.drain().await?;
    let rate = yardstick::rate(jobs as u64, start.elapsed());
    let cpu = farm::cpu_time().saturating_sub(cpu).as_secs_f64() * 1e3;
    match yardstick {
        Some(yardstick) => report::at_least(name, rate, "jobs/s", yardstick, 0.2),
        None => report::figure(name, rate, "jobs/s"),
    }
    report::figure(&format!("{name}_submit"), yardstick::rate(jobs as u64, submitted), "builds/s");
    #[expect(clippy::cast_precision_loss, reason = "a count of jobs")]
    report::figure(&format!("{name}_cpu_of_server_agents_client"), cpu / jobs as f64, "ms/job");
    farm.stop().await
}

/// From the call of Submit on an idle farm to the first instruction of the job's process.
pub(crate) async fn latency(name: &str, database: &str, yardstick: Duration) -> Result<()> {
    const ROUNDS: usize = 60;
    let farm = Farm::start(database).await?;
    farm.agent("agent", false).await?;
    let mark = farm.folder.path().join("mark");
    let script = format!("date +%s%N > {0}.new && mv {0}.new {0}", mark.display());
    let mut times = vec![];
    for round in 0..=ROUNDS {
        let start = kiln_agent::clock::wall_ms();
        let precise = Instant::now();
        farm.submit(farm::shell_job(script.clone()), 1).await?;
        while !mark.exists() && precise.elapsed() < Duration::from_secs(30) {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        let nanos: i128 = fs::read_to_string(&mark)?.trim().parse()?;
        fs::remove_file(&mark)?;
        farm.drain().await?;
        let elapsed = nanos - i128::from(start) * 1_000_000;
        // The first job finds everything cold.
        if round > 0 {
            times.push(Duration::from_nanos(u64::try_from(elapsed.max(0))?));
        }
    }
    let (p50, p99) = (yardstick::percentile(&mut times, 50), yardstick::percentile(&mut times, 99));
    report::at_most(&format!("{name}_p50"), millis(p50), "ms", millis(yardstick), 4.0);
    report::at_most(&format!("{name}_p99"), millis(p99), "ms", millis(p50), 5.0);
    farm.stop().await
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
