//! A thousand agents on one server: what they cost while they are idle, and how soon they are back after its death.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use kiln_sdk::v1::{GetBuildRequest, Job, JobState};

use super::{
    farm::{self, Farm},
    report,
};

const AGENTS: usize = 1_000;
/// Jobs that run while the server dies.
const JOBS: usize = 100;
/// Two heartbeats of each agent and a few sweeps.
const IDLE: Duration = Duration::from_secs(20);

pub(crate) async fn fleet(name: &str, database: &str) -> Result<()> {
    let farm = Farm::start(database).await?;
    stream::iter(0..AGENTS)
        .map(|number| {
            let farm = &farm;
            async move { farm.noop_agent(&format!("agent-{number}")).await }
        })
        .buffer_unordered(16)
        .try_for_each(|()| async { Ok(()) })
        .await?;
    farm.connected(AGENTS, 0).await?;
    let cpu = farm.server.cpu();
    tokio::time::sleep(IDLE).await;
    let cpu = farm.server.cpu().saturating_sub(cpu).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    report::at_most(&format!("{name}_memory_of_server"), farm.server.resident()?, "MB", 150.0, 1.0);
    report::at_most(&format!("{name}_cpu_of_server"), cpu, "%", 2.0, 1.0);

    let job =
        kiln_sdk::v1::JobSpec { command: vec![], script: "wait".to_owned(), ..farm::noop_job() };
    let build = farm.submit(job, JOBS).await?;
    until(&farm, &build, JobState::Running).await?;
    let (start, since) = (Instant::now(), kiln_agent::clock::wall_ms());
    let farm = farm.restart()?;
    farm.connected(AGENTS, since).await?;
    let back = start.elapsed().as_secs_f64();
    report::at_most(&format!("{name}_reconnect"), back, "s", 5.0, 1.0);
    farm.noop.gate.add_permits(JOBS);
    for job in until(&farm, &build, JobState::Succeeded).await? {
        ensure!(job.attempt == 1, "job {} was run {} times", job.name, job.attempt);
    }
    farm.stop().await
}

/// Until all jobs of a build are in a state.
async fn until(farm: &Farm, build: &str, state: JobState) -> Result<Vec<Job>> {
    let start = Instant::now();
    loop {
        let jobs = farm.client.get_build(GetBuildRequest { build: build.to_owned() }).await?.jobs;
        if jobs.iter().all(|job| job.state() == state) {
            return Ok(jobs);
        }
        ensure!(start.elapsed() < farm::PATIENCE, "the jobs are not {state:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
