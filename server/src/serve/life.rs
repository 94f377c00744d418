//! How a server ends.
//!
//! ```text
//! leaving ──▶ not ready, still served for `drain_ms` ──▶ stop ──▶ streams end, no new calls ──▶ (calls are answered)
//!         ──▶ halt ──▶ committers end ──▶ store closed
//! ```

use std::{future::Future, time::Duration};

use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Result;
use crate::config::Config;

pub(super) struct Life {
    /// The server is about to end, and not ready any more. It still serves.
    pub(super) leaving: CancellationToken,
    /// Streams end, and no new call is taken.
    pub(super) stop: CancellationToken,
    /// What serves the calls ends.
    pub(super) halt: CancellationToken,
    pub(super) tasks: TaskTracker,
    drain: Duration,
    bound: Duration,
}

impl Life {
    pub(super) fn new(config: &Config, shutdown: &CancellationToken) -> Self {
        Self {
            leaving: shutdown.child_token(),
            stop: CancellationToken::new(),
            halt: CancellationToken::new(),
            tasks: TaskTracker::new(),
            drain: Duration::from_millis(config.drain_ms),
            bound: Duration::from_millis(config.shutdown_ms),
        }
    }

    /// Runs the server until it ends or is told to; then ends everything else within the bound.
    pub(super) async fn end(self, server: impl Future<Output = Result<()>>) -> Result<()> {
        tokio::pin!(server);
        let ended = tokio::select! {
            ended = &mut server => Some(ended),
            () = self.leaving.cancelled() => timeout(self.drain, &mut server).await.ok(),
        };
        self.stop.cancel();
        let ended = match ended {
            Some(ended) => ended,
            None => timeout(self.bound, server).await.unwrap_or_else(|_| {
                tracing::warn!("some calls did not end in time; they are cut");
                Ok(())
            }),
        };
        self.halt.cancel();
        self.tasks.close();
        if timeout(self.bound, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "some tasks did not end in time");
        }
        ended
    }
}
