//! Probes and numbers over plain HTTP.

use std::time::Duration;

use axum::{
    Router,
    extract::State,
    http::{HeaderName, StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    metrics::{Metrics, Now},
};

/// A database that takes longer to answer is not ready.
const WITHIN: Duration = Duration::from_secs(2);

pub(super) fn router(app: App, stop: CancellationToken) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state((app, stop))
}

/// What is counted, and what the rows say at the moment.
async fn metrics(
    State((app, _)): State<(App, CancellationToken)>,
) -> ([(HeaderName, &'static str); 1], String) {
    let census = tokio::time::timeout(WITHIN, app.census()).await;
    let census = match census {
        Ok(Ok(census)) => Some(census),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the metrics say nothing of rows");
            None
        }
        Err(_) => None,
    };
    let now =
        Now { at: app.clock().now(), census: census.as_deref(), sessions: app.session_count() };
    ([(CONTENT_TYPE, Metrics::TYPE)], app.metrics().page(&now))
}

/// It can reach its database and is not about to end.
async fn ready(
    State((app, stop)): State<(App, CancellationToken)>,
) -> Result<&'static str, (StatusCode, &'static str)> {
    let busy = |why| (StatusCode::SERVICE_UNAVAILABLE, why);
    if stop.is_cancelled() {
        return Err(busy("the server shuts down\n"));
    }
    match tokio::time::timeout(WITHIN, app.projects()).await {
        Ok(Ok(_)) => Ok("ready\n"),
        Ok(Err(error)) => {
            tracing::warn!(%error, "not ready");
            Err(busy("the database can't be used\n"))
        }
        Err(_) => Err(busy("the database does not answer\n")),
    }
}
