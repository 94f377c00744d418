//! How much waits and runs, for the metrics: asked of the rows, but not by each who reads the page.

use std::{sync::Arc, time::Duration};

use super::{App, Result};
use crate::store::{Census, Wait};

/// For how long an answer is good enough.
const FRESH: Duration = Duration::from_secs(5);

impl App {
    /// Counts of what waits and of what is open, a few seconds old at most.
    pub async fn census(&self) -> Result<Arc<Census>> {
        let now = self.0.clock.elapsed();
        if let Some(census) = self.0.census.get(now, FRESH) {
            return Ok(census);
        }
        let store = &self.0.store;
        let (mut census, projects) =
            tokio::try_join!(store.census(self.0.clock.now()), store.projects())?;
        let is_barred = |row: &crate::store::ProjectRow| {
            row.paused || (row.max_running > 0 && row.running >= row.max_running)
        };
        for depth in &mut census.queue {
            if projects.iter().any(|row| row.id == depth.project && is_barred(row)) {
                depth.wait = Wait::Project;
            }
        }
        let census = Arc::new(census);
        self.0.census.put(now, Arc::clone(&census));
        Ok(census)
    }

    /// The newest migration of the database: a sign of its life.
    pub async fn schema(&self) -> Result<String> {
        Ok(self.0.store.schema().await?)
    }

    /// Sessions of this process.
    pub fn session_count(&self) -> usize {
        self.0.dispatch.sessions().len()
    }
}
