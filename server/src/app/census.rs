//! How much waits and runs, for the metrics: asked of the rows, but not by each who reads the page.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{App, Result};
use crate::store::{Census, Wait};

/// For how long an answer is good enough.
const FRESH: Duration = Duration::from_secs(5);

/// The last answer, and when it was given.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Option<(Duration, Arc<Census>)>>);

impl App {
    /// Counts of what waits and of what is open, a few seconds old at most.
    pub async fn census(&self) -> Result<Arc<Census>> {
        let now = self.0.clock.elapsed();
        let recent = self.0.census.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, census)) = recent
            && now.saturating_sub(at) < FRESH
        {
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
        let known = (now, Arc::clone(&census));
        *self.0.census.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Ok(census)
    }

    /// Sessions of this process.
    pub fn session_count(&self) -> usize {
        self.0.dispatch.sessions().len()
    }
}
