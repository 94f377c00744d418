//! How many jobs a second go from Submit to Finish, and how soon one starts.

use std::{
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use kiln_agent::backend;
use rustix::fs::{CWD, Mode, mkfifoat};
use tokio::{io::AsyncReadExt, net::unix::pipe, time::timeout};

use super::{
    farm::{self, Farm},
    report,
    server::cpu_time,
    yardstick,
};

const AGENTS: usize = 8;
const CLIENTS: usize = 256;
/// Jobs of one build of a long queue.
const BUILD: usize = 1_000;

/// A farm whose agents do nothing, quickly.
async fn farm(database: &str) -> Result<Farm> {
    let farm = Farm::start(database).await?;
    for number in 0..AGENTS {
        farm.noop_agent(&format!("agent-{number}")).await?;
    }
    farm.connected(AGENTS, 0).await?;
    Ok(farm)
}

/// Trivial jobs, one a build, submitted by many clients at once. `yardstick` looks at the farm's folder afterwards.
pub(crate) async fn throughput(
    name: &str,
    database: &str,
    jobs: usize,
    bar: f64,
    yardstick: impl AsyncFnOnce(&Path) -> Result<f64>,
) -> Result<()> {
    let farm = farm(database).await?;
    let (start, own, server) = (Instant::now(), cpu_time("self"), farm.server.cpu());
    stream::iter(0..jobs)
        .map(|_| farm.submit(farm::noop_job(), 1))
        .buffer_unordered(CLIENTS)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    farm.drain().await?;
    let rate = yardstick::rate(jobs as u64, start.elapsed());
    let own = cpu_time("self").saturating_sub(own);
    let server = farm.server.cpu().saturating_sub(server);
    let best = yardstick(&farm.folder.path().join("server")).await?;
    report::at_least(name, rate, "jobs/s", best, bar);
    report::figure(&format!("{name}_cpu_of_server"), each(server, jobs), "ms/job");
    report::figure(&format!("{name}_cpu_of_agents_and_clients"), each(own, jobs), "ms/job");
    farm.stop().await
}

fn each(time: Duration, jobs: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of jobs")]
    let jobs = jobs as f64;
    millis(time) / jobs
}

/// A queue that is long before the first agent comes: its last tenth beside its first.
pub(crate) async fn queue(name: &str, database: &str, jobs: usize) -> Result<()> {
    let farm = Farm::start(database).await?;
    stream::iter(0..jobs / BUILD)
        .map(|_| farm.submit(farm::noop_job(), BUILD))
        .buffer_unordered(2)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    let start = Instant::now();
    for number in 0..AGENTS {
        farm.noop_agent(&format!("agent-{number}")).await?;
    }
    let mut marks = vec![];
    for part in [0, 1, 9, 10] {
        while farm.noop.runs.load(Ordering::Relaxed) < jobs * part / 10 {
            anyhow::ensure!(start.elapsed() < farm::PATIENCE, "the queue does not drain");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        marks.push(Instant::now());
    }
    farm.drain().await?;
    let tenth = |from: usize| yardstick::rate((jobs / 10) as u64, marks[from + 1] - marks[from]);
    report::figure(&format!("{name}_first_tenth"), tenth(0), "jobs/s");
    report::at_least(&format!("{name}_last_tenth"), tenth(2), "jobs/s", tenth(0), 0.8);
    farm.stop().await
}

/// From the call of Submit on an idle farm to the first word of the job's process.
pub(crate) async fn latency(name: &str, database: &str, yardstick: Duration) -> Result<()> {
    const ROUNDS: usize = 60;
    let farm = Farm::start(database).await?;
    farm.agent("agent", backend::Config::default()).await?;
    farm.connected(1, 0).await?;
    let mark = farm.folder.path().join("mark");
    mkfifoat(CWD, &mark, Mode::from_raw_mode(0o600))?;
    let mut words = pipe::OpenOptions::new().read_write(true).open_receiver(&mark)?;
    let script = format!("echo > {}", mark.display());
    let mut times = vec![];
    for round in 0..=ROUNDS {
        let start = Instant::now();
        farm.submit(farm::shell_job(script.clone()), 1).await?;
        timeout(farm::PATIENCE, words.read_exact(&mut [0])).await??;
        // The first job finds everything cold.
        if round > 0 {
            times.push(start.elapsed());
        }
        farm.drain().await?;
    }
    let (p50, p99) = (yardstick::percentile(&mut times, 50), yardstick::percentile(&mut times, 99));
    report::at_most(&format!("{name}_p50"), millis(p50), "ms", millis(yardstick), 4.0);
    report::at_most(&format!("{name}_p99"), millis(p99), "ms", millis(p50), 5.0);
    farm.stop().await
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
