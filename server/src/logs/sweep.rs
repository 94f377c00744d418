//! What is done to logs once in a while: those whose end was reported or never came are closed, closed ones are
//! compressed, old ones are removed. Each step can be repeated, so a crash between two costs nothing.

use std::{collections::BTreeSet, time::Duration};

use kiln_core::{Millis, id::LeaseId};

use super::{
    LATE, Logs, Result, has_arrived,
    index::{Key, LogRow, LogState},
};
use crate::wake::Topic;

const PAGE: u32 = 200;

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    pub closed: usize,
    pub packed: usize,
    /// Logs that could not be compressed; the reasons are in the server's own log.
    pub failed: usize,
}

impl Logs {
    /// Closes and compresses what is due.
    pub async fn sweep(&self) -> Result<Swept> {
        let mut swept = Swept::default();
        let mut after: Option<Key> = None;
        loop {
            let page = self.parts.index.unpacked(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(swept) };
            after = Some(last.key.clone());
            for row in page {
                let was_open = row.state == LogState::Open;
                let row = self.close(row).await?;
                if row.state == LogState::Open {
                    continue;
                }
                swept.closed += usize::from(was_open);
                match self.parts.store.pack(&row).await {
                    Ok(()) => swept.packed += 1,
                    Err(error) => {
                        swept.failed += 1;
                        tracing::error!(lease = %row.key.lease, stream = row.key.stream, %error, "a log was not compressed");
                    }
                }
            }
        }
    }

    /// Closes a log that is all there, or whose end is overdue.
    async fn close(&self, row: LogRow) -> Result<LogRow> {
        if row.state != LogState::Open {
            return Ok(row);
        }
        let Some(lease) = self.parts.rows.lease(row.key.lease).await? else { return Ok(row) };
        let state = if has_arrived(&lease, &row.key.stream, row.size) {
            LogState::Complete
        } else if self.is_late(&lease, LATE) {
            LogState::Truncated
        } else {
            return Ok(row);
        };
        let closed = self.parts.index.close_log(&row.key, row.size, state, self.now()).await?;
        self.parts.wake.publish(&[Topic::Log(row.key.lease)]);
        Ok(closed.unwrap_or(row))
    }

    /// Removes the logs that ended longer ago than `age`; returns of how many leases.
    pub async fn expire(&self, age: Duration) -> Result<usize> {
        let age = Millis::try_from(age.as_millis()).unwrap_or(Millis::MAX);
        let before = self.now().saturating_sub(age);
        let mut removed = BTreeSet::new();
        loop {
            let leases = self.parts.index.closed_before(before, PAGE).await?;
            if leases.is_empty() {
                return Ok(removed.len());
            }
            for lease in leases {
                self.forget(lease).await?;
                removed.insert(lease);
            }
        }
    }

    /// Removes the logs of a lease.
    pub async fn forget(&self, lease: LeaseId) -> Result<()> {
        let rows = self.parts.index.logs_of(lease).await?;
        self.parts.store.delete(&rows).await?;
        Ok(self.parts.index.delete_logs(lease).await?)
    }
}
