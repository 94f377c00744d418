//! Logs and blobs of a server: where they are, and what is done to them from time to time.

use std::{sync::Arc, time::Duration};

use object_store::aws::AmazonS3Builder;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Result;
use crate::{
    app::App,
    artifacts::{self, Artifacts, BlobIndex},
    clock::SharedClock,
    config::{self, Config, Location, Retention},
    files::Stored,
    live::Live,
    logs::{self, LogIndex, LogStore, Logs, fs::FsStore, object::ObjectLogs},
    storage::{self, Objects},
    store::SharedStore,
    wake::Wake,
};

/// Between two rounds of sealing, compressing and collecting.
const ROUND: Duration = Duration::from_secs(30);

/// What logs and blobs stand on.
pub(super) struct Ground<'a> {
    pub(super) config: &'a Config,
    pub(super) rows: SharedStore,
    pub(super) wake: Arc<dyn Wake>,
    pub(super) clock: SharedClock,
    pub(super) tasks: &'a TaskTracker,
    pub(super) halt: &'a CancellationToken,
}

/// Opens both where the configuration says, with their rows in `index`.
pub(super) async fn open<I>(ground: Ground<'_>, index: Arc<I>) -> Result<Stored>
where
    I: LogIndex + BlobIndex + 'static,
{
    let Ground { config, rows, wake, clock, tasks, halt } = ground;
    let data = &config.data_dir;
    let fresh = clock.id().simple().to_string();
    let log_index: Arc<dyn LogIndex> = Arc::<I>::clone(&index);
    let shared = match config.storage.location().map_err(config::Error::from)? {
        Location::DataDir => None,
        Location::Folder(folder) => Some(storage::folder(folder)?),
        Location::Bucket { bucket, prefix } => {
            Some(storage::bucket(AmazonS3Builder::from_env(), &bucket, &prefix).await?)
        }
    };
    let (objects, store): (Objects, Arc<dyn LogStore>) = match shared {
        None => {
            let logs = FsStore::open(data.join("logs"), Arc::clone(&log_index), &fresh).await?;
            (storage::folder(data.join("artifacts"))?, Arc::new(logs))
        }
        Some(objects) => {
            let (store, root) = (Arc::clone(&objects.store), objects.root.clone().join("logs"));
            let logs = ObjectLogs::open(store, root, Arc::clone(&log_index), &fresh).await?;
            (objects, Arc::new(logs))
        }
    };
    let parts = logs::Parts {
        index: log_index,
        store,
        rows: Arc::clone(&rows),
        wake,
        clock: Arc::clone(&clock),
        look: config.timing().sweep,
    };
    let logs = Logs::start(parts, tasks, halt.clone());
    let parts = artifacts::Parts {
        index,
        objects: objects.store,
        root: objects.root.join("blobs"),
        folder: data.join("uploads"),
        rows,
        clock,
        max_blob: config.max_artifact_bytes,
    };
    Ok(Stored { logs, artifacts: Artifacts::open(parts).await? })
}

/// Seals, compresses, expires and collects.
pub(super) async fn tend(app: App, stored: Stored, keep: Live<Retention>, halt: CancellationToken) {
    let mut ticks = tokio::time::interval(ROUND);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = halt.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let keep = keep.get();
        tokio::select! {
            () = halt.cancelled() => return,
            done = round(&app, &stored, &keep) => if let Err(error) = done {
                tracing::warn!(%error, "logs and artifacts were not tended; the next round tries again");
            }
        }
    }
}

async fn round(app: &App, stored: &Stored, keep: &Retention) -> super::Result<()> {
    app.expire(stored, keep).await?;
    stored.logs.sweep().await?;
    if let Some(age) = keep.logs() {
        stored.logs.expire(age).await?;
    }
    if let Some(age) = keep.artifacts() {
        stored.artifacts.expire(age).await?;
    }
    stored.artifacts.collect().await?;
    Ok(())
}
