//! Whether calls should come to this server: its database and its storage answer, and it is not about to end.

use std::{future::Future, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{app::App, artifacts::Artifacts, recent::Recent};

/// What takes longer to answer is not ready.
const WITHIN: Duration = Duration::from_secs(2);
/// For how long an answer is good enough: anyone may ask.
const FRESH: Duration = Duration::from_secs(1);
/// Between two looks for those who watch the health service.
const LOOK: Duration = Duration::from_secs(5);
/// What the health service tells of, beside the server as a whole.
const SERVICE: &str = "kiln.v1.BuildService";

/// What was found, as `/readyz` says it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) ready: bool,
    version: &'static str,
    /// `ok`, or `failed`: the log says why.
    database: &'static str,
    /// The newest migration of the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<String>,
    /// As `database`; `none` where this server keeps no logs and artifacts.
    storage: &'static str,
    /// It is about to end.
    draining: bool,
}

/// Finds out. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Readiness {
    app: App,
    artifacts: Option<Artifacts>,
    leaving: CancellationToken,
    recent: Arc<Recent<Report>>,
}

impl Readiness {
    pub(super) fn new(app: App, artifacts: Option<Artifacts>, leaving: CancellationToken) -> Self {
        Self { app, artifacts, leaving, recent: Arc::default() }
    }

    pub(super) async fn report(&self) -> Report {
        let now = self.app.clock().elapsed();
        let found = match self.recent.get(now, FRESH) {
            Some(found) => found,
            None => self.look().await,
        };
        let draining = self.leaving.is_cancelled();
        Report { ready: found.ready && !draining, draining, ..found }
    }

    async fn look(&self) -> Report {
        let storage = async {
            match &self.artifacts {
                Some(artifacts) => answer("storage", artifacts.reach()).await.map(|()| "ok"),
                None => Some("none"),
            }
        };
        let (schema, storage) = tokio::join!(answer("database", self.app.schema()), storage);
        let found = Report {
            ready: schema.is_some() && storage.is_some(),
            version: env!("CARGO_PKG_VERSION"),
            database: if schema.is_some() { "ok" } else { "failed" },
            schema,
            storage: storage.unwrap_or("failed"),
            draining: false,
        };
        self.recent.put(self.app.clock().elapsed(), found.clone());
        found
    }
}

/// What it says in time; why it does not goes to the log alone.
async fn answer<T, E: std::error::Error>(
    what: &str,
    asked: impl Future<Output = Result<T, E>>,
) -> Option<T> {
    match timeout(WITHIN, asked).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::warn!(what, %error, "not ready");
            None
        }
        Err(_) => {
            tracing::warn!(what, "not ready: it does not answer");
            None
        }
    }
}

/// Keeps the health service of gRPC in step.
pub(super) async fn report(ready: Readiness, health: HealthReporter, halt: CancellationToken) {
    let mut ticks = interval(LOOK);
    let mut left = false;
    loop {
        tokio::select! {
            () = halt.cancelled() => return,
            () = ready.leaving.cancelled(), if !left => left = true,
            _ = ticks.tick() => {}
        }
        let is_ready = !left && ready.report().await.ready;
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", SERVICE] {
            health.set_service_status(service, status).await;
        }
    }
}
