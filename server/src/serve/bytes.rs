//! Logs and blobs of a server: where they are, and what is done to them from time to time.

use std::{fs, io, sync::Arc, time::Duration};

use object_store::{local::LocalFileSystem, path::Path};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Error, Result};
use crate::{
    artifacts::{self, Artifacts, BlobIndex},
    clock::SharedClock,
    config::Config,
    files::Stored,
    logs::{self, LogIndex, Logs, fs::FsStore},
    store::SharedStore,
    wake::Wake,
};

/// Between two rounds of sealing, compressing and collecting.
const ROUND: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_hours(24);

/// What logs and blobs stand on.
pub(super) struct Ground<'a> {
    pub(super) config: &'a Config,
    pub(super) rows: SharedStore,
    pub(super) wake: Arc<dyn Wake>,
    pub(super) clock: SharedClock,
    pub(super) tasks: &'a TaskTracker,
    pub(super) halt: &'a CancellationToken,
}

/// Opens both under the data folder, with their rows in `index`.
pub(super) async fn open<I>(ground: Ground<'_>, index: Arc<I>) -> Result<Stored>
where
    I: LogIndex + BlobIndex + 'static,
{
    let Ground { config, rows, wake, clock, tasks, halt } = ground;
    let data = &config.data_dir;
    let fresh = clock.id().simple().to_string();
    let logs: Arc<dyn LogIndex> = Arc::<I>::clone(&index);
    let store = Arc::new(FsStore::open(data.join("logs"), Arc::clone(&logs), &fresh).await?);
    let parts = logs::Parts {
        index: logs,
        store,
        rows: Arc::clone(&rows),
        wake,
        clock: Arc::clone(&clock),
    };
    let logs = Logs::start(parts, tasks, halt.clone());
    let folder = config.artifacts_dir()?;
    let unusable = |source: io::Error| Error::Artifacts { folder: folder.clone(), source };
    fs::create_dir_all(&folder).map_err(unusable)?;
    let objects = LocalFileSystem::new_with_prefix(&folder)
        .map_err(|error| unusable(io::Error::other(error)))?
        // "Stored" means durable.
        .with_fsync(true);
    let parts = artifacts::Parts {
        index,
        objects: Arc::new(objects),
        root: Path::from("blobs"),
        folder: data.join("uploads"),
        rows,
        clock,
        max_blob: config.max_artifact_bytes,
    };
    Ok(Stored { logs, artifacts: Artifacts::open(parts).await? })
}

/// How long logs and artifacts are kept; nothing is for ever.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keep {
    logs: Option<Duration>,
    artifacts: Option<Duration>,
}

impl Keep {
    pub(super) fn of(config: &Config) -> Self {
        let days = |days: u32| (days > 0).then(|| DAY * days);
        Self { logs: days(config.log_days), artifacts: days(config.artifact_days) }
    }
}

/// Seals, compresses, expires and collects.
pub(super) async fn tend(stored: Stored, keep: Keep, halt: CancellationToken) {
    let mut ticks = tokio::time::interval(ROUND);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = halt.cancelled() => return,
            _ = ticks.tick() => {}
        }
        tokio::select! {
            () = halt.cancelled() => return,
            done = round(&stored, keep) => if let Err(error) = done {
                tracing::warn!(%error, "logs and artifacts were not tended; the next round tries again");
            }
        }
    }
}

async fn round(stored: &Stored, keep: Keep) -> crate::uploads::Result<()> {
    stored.logs.sweep().await?;
    if let Some(age) = keep.logs {
        stored.logs.expire(age).await?;
    }
    if let Some(age) = keep.artifacts {
        stored.artifacts.expire(age).await?;
    }
    stored.artifacts.collect().await?;
    Ok(())
}
