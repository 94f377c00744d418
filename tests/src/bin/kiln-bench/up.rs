//! `kiln up` from nothing: until its own agent takes jobs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kiln_sdk::{
    Client, Options,
    v1::{AgentState, ListAgentsRequest},
};
use tempfile::TempDir;

use super::{jobs::millis, report, server::Program, yardstick::percentile};

const ROUNDS: usize = 5;

pub(crate) async fn cold_start(name: &str) -> Result<()> {
    let mut times = vec![];
    let mut memory = 0.0_f64;
    for _ in 0..ROUNDS {
        let folder = TempDir::new()?;
        let data = folder.path().join("data").to_string_lossy().into_owned();
        let start = Instant::now();
        let up =
            Program::start(&["up", "--data", &data, "--listen", "127.0.0.1:0"], folder.path())?;
        let secret = std::fs::read_to_string(folder.path().join("data/admin.token"))?;
        let client = Client::connect(Options::new(&up.url).token(secret.trim())).await?;
        loop {
            let agents = client.list_agents(ListAgentsRequest {}).await?.agents;
            if agents.iter().any(|agent| agent.state() == AgentState::Online) {
                break;
            }
            ensure!(start.elapsed() < super::farm::PATIENCE, "its agent does not come");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        times.push(start.elapsed());
        memory = memory.max(up.resident()?);
        up.stop()?;
    }
    report::at_most(name, millis(percentile(&mut times, 50)), "ms", 200.0, 1.0);
    report::at_most(&format!("{name}_memory"), memory, "MB", 40.0, 1.0);
    Ok(())
}
