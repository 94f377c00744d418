//! How fast a log goes from a job's process until it is sealed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kiln_sdk::v1::{GetBuildRequest, ReadLogRequest};

use super::{
    farm::{self, Farm},
    report,
};

const BYTES: u64 = 200 * 1000 * 1000;

/// A log of 100-byte lines, printed as fast as it is read.
pub(crate) async fn throughput(name: &str, database: &str, raw: f64) -> Result<()> {
    let farm = Farm::start(database).await?;
    farm.agent("agent", false).await?;
    let text = farm.folder.path().join("lines");
    let line = format!("{}\n", "x".repeat(99));
    std::fs::write(&text, line.repeat(usize::try_from(BYTES)? / line.len()))?;
    let mut job = farm::shell_job(format!("cat {}", text.display()));
    job.resources = Some(kiln_sdk::v1::Resources { log_bytes: i64::MAX / 2, ..Default::default() });
    let (start, cpu) = (Instant::now(), farm::cpu_time());
    let build = farm.submit(job, 1).await?;
    let job = farm.client.get_build(GetBuildRequest { build }).await?.jobs.remove(0).id;
    loop {
        let request = ReadLogRequest { job: job.clone(), limit: 1, ..Default::default() };
        let held = farm.client.read_log(request).await.ok().and_then(|answer| answer.log);
        match held {
            Some(log) if log.complete => {
                ensure!(log.size == i64::try_from(BYTES)?, "{} of {BYTES} bytes arrived", log.size);
                break;
            }
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        ensure!(start.elapsed() < Duration::from_mins(2), "the log is not sealed");
    }
    let time = start.elapsed();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let megabytes = BYTES as f64 / 1e6;
    report::at_least(name, megabytes / time.as_secs_f64(), "MB/s", raw, 0.25);
    let cpu = farm::cpu_time().saturating_sub(cpu).as_secs_f64();
    report::figure(&format!("{name}_cpu_of_server_and_agent"), cpu / megabytes * 100.0, "s/100MB");
    farm.stop().await
}
