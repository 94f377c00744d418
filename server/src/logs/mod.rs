//! The logs of the leases: appended by their agents, read by anyone at any offset, sealed when they are complete.
//!
//! A log is a stream of a lease. The bytes go to a [`LogStore`] first, then the index row is committed, then they are
//! acknowledged: an acknowledged byte is durable, and a byte without a row does not exist. This module knows rows and
//! bytes, nothing of the wire.

mod commit;
pub mod explain;
pub mod follow;
pub mod frames;
pub mod fs;
pub mod index;
pub mod memory;
pub mod object;
mod sweep;
#[cfg(test)]
mod tests;
pub mod write;

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use kiln_core::{
    Millis,
    id::{AgentId, JobId, LeaseId},
    session::LeasePhase,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::SharedClock,
    store::{JobRow, LeaseRow, SharedStore},
    uploads::Seats,
    wake::{Subscription, Topic, Wake},
};

pub use crate::uploads::{Error, Result};
pub use explain::Lines;
pub use follow::{Follower, Piece};
pub use index::{Key, LogIndex, LogRow, LogState, Stage};
pub use sweep::Swept;
pub use write::Writer;

/// The stream that is meant where none is named.
pub const MAIN: &str = "main";
/// How long the agent of a lease that ended may still deliver its log.
pub const LATE: Duration = Duration::from_hours(1);
/// Streams of one lease.
const MAX_STREAMS: usize = 16;
/// Bytes of one stream. The agent keeps to the job's own limit; this one guards the disk against a broken agent.
const MAX_SIZE: u64 = 16 << 30;
/// Bytes of one read.
pub const MAX_READ: usize = 1 << 20;

/// Where the bytes are. It trusts the row: what lies behind `size` does not exist.
#[async_trait]
pub trait LogStore: Debug + Send + Sync {
    /// Errors where the end of the log is not what its index says.
    async fn check(&self, row: &LogRow) -> Result<()>;
    /// Makes the bytes durable behind the end of the log, and says where they are. The row follows.
    async fn write(&self, row: &LogRow, bytes: &[Bytes]) -> Result<index::Place>;
    /// What has to be done once in a while after an append.
    async fn settle(&self, row: &LogRow) -> Result<()>;
    /// The bytes from `offset` on: `limit` of them, fewer at the end of the log only.
    async fn read(&self, row: &LogRow, offset: u64, limit: usize) -> Result<Bytes>;
    /// Gives a closed log its final form.
    async fn pack(&self, row: &LogRow) -> Result<()>;
    /// Removes all bytes of the leases of these logs.
    async fn delete(&self, rows: &[LogRow]) -> Result<()>;
}

/// What [`Logs`] is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    pub index: Arc<dyn LogIndex>,
    pub store: Arc<dyn LogStore>,
    pub rows: SharedStore,
    pub wake: Arc<dyn Wake>,
    pub clock: SharedClock,
    /// Between two looks of a follower, as a hint can be lost.
    pub look: Duration,
}

/// All logs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {
    parts: Parts,
    committer: commit::Committer,
    seats: Seats<Key>,
}

/// What is known of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub key: Key,
    pub size: u64,
    /// No byte will follow.
    pub complete: bool,
    /// It is complete, but its end is missing.
    pub truncated: bool,
    pub stages: Vec<Stage>,
    pub streams: Vec<String>,
    /// None: nothing arrived yet.
    row: Option<LogRow>,
}

impl Logs {
    /// Starts the task that commits, tracked by `tasks`; it ends with `stop`, after what it has taken.
    pub fn start(parts: Parts, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let index = Arc::clone(&parts.index);
        let committer = commit::Committer::start(index, Arc::clone(&parts.clock), tasks, stop);
        Self { parts, committer, seats: Seats::default() }
    }

    fn now(&self) -> Millis {
        self.parts.clock.now()
    }

    fn subscribe(&self, lease: Option<LeaseId>, job: &JobRow) -> Subscription {
        let mut topics = vec![Topic::Build(job.job.build)];
        topics.extend(lease.map(Topic::Log));
        self.parts.wake.subscribe(&topics)
    }

    async fn lease(&self, id: LeaseId) -> Result<LeaseRow> {
        let row = self.parts.rows.lease(id).await?;
        row.ok_or_else(|| Error::not_found("lease", id))
    }

    /// The job, for whoever must judge whether its log may be read.
    pub async fn job(&self, id: JobId) -> Result<JobRow> {
        let row = self.parts.rows.job(id).await?;
        row.ok_or_else(|| Error::not_found("job", id))
    }

    /// The lease of this job that was asked for, else its last one; none where it was never leased.
    pub async fn lease_of(&self, job: JobId, lease: Option<LeaseId>) -> Result<Option<LeaseRow>> {
        let mut leases = self.parts.rows.leases_of_job(job).await?;
        let Some(id) = lease else {
            leases.sort_by_key(|row| row.attempt);
            return Ok(leases.pop());
        };
        let found = leases.into_iter().find(|row| row.id == id);
        found.map(Some).ok_or_else(|| Error::not_found("lease", id))
    }

    /// What is known of a stream of a lease.
    pub async fn info(&self, lease: &LeaseRow, stream: &str) -> Result<Info> {
        let mut rows = self.parts.index.logs_of(lease.id).await?;
        let stages = self.parts.index.stages(lease.id).await?;
        let streams = rows.iter().map(|row| row.key.stream.clone()).collect();
        let at = rows.iter().position(|row| row.key.stream == stream);
        let row = at.map(|at| rows.swap_remove(at));
        let size = row.as_ref().map_or(0, |row| row.size);
        let state = row.as_ref().map_or(LogState::Open, |row| row.state);
        let arrived = has_arrived(lease, stream, size);
        let late = self.is_late(lease, LATE);
        let complete = state != LogState::Open || arrived || late;
        let truncated = state == LogState::Truncated || state == LogState::Open && !arrived && late;
        let key = Key { lease: lease.id, stream: stream.to_owned() };
        Ok(Info { key, size, complete, truncated, stages, streams, row })
    }

    /// Nothing will be added to any stream of the lease: all is there, nobody sends it, or it is too late.
    pub async fn has_ended(&self, id: LeaseId) -> Result<bool> {
        let Some(lease) = self.parts.rows.lease(id).await? else { return Ok(true) };
        if lease.phase != LeasePhase::Finished || self.is_late(&lease, LATE) {
            return Ok(!lease.phase.is_open());
        }
        let rows = self.parts.index.logs_of(id).await?;
        Ok(lease.log_lengths.iter().all(|(stream, length)| {
            let row = rows.iter().find(|row| row.key.stream == *stream);
            row.map_or(*length == 0, |row| row.state != LogState::Open)
        }))
    }

    /// The bytes of a log from `offset` on, at most [`MAX_READ`].
    pub async fn read(&self, info: &Info, offset: u64, limit: usize) -> Result<Bytes> {
        match &info.row {
            Some(row) if offset < row.size => {
                self.parts.store.read(row, offset, limit.min(MAX_READ)).await
            }
            _ => Ok(Bytes::new()),
        }
    }

    /// The right to append to a log of the agent's own lease. An older writer of the same log is told to leave.
    pub async fn writer(&self, agent: AgentId, lease: LeaseId, stream: &str) -> Result<Writer> {
        Writer::open(self, agent, lease, stream).await
    }

    /// The lease ended this long ago.
    fn is_late(&self, lease: &LeaseRow, patience: Duration) -> bool {
        let patience = Millis::try_from(patience.as_millis()).unwrap_or(Millis::MAX);
        lease.ended_at.is_some_and(|at| at.saturating_add(patience) < self.now())
    }
}

/// The report of the lease was taken and this is the length it gave.
fn has_arrived(lease: &LeaseRow, stream: &str, size: u64) -> bool {
    lease.phase == LeasePhase::Finished
        && lease.log_lengths.get(stream).copied().unwrap_or(0) == size
}
