//! Probes and numbers over plain HTTP.

use std::time::Duration;

use super::ready::{Readiness, Report};
use crate::{
    app::App,
    metrics::{Metrics, Now},
};
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderName, StatusCode, header::CONTENT_TYPE},
    routing::get,
};

/// Of a database that takes longer to answer nothing is said.
const WITHIN: Duration = Duration::from_secs(2);

pub(super) fn router(app: App, readiness: Readiness) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state((app, readiness))
}

/// What is counted, and what the rows say at the moment.
async fn metrics(
    State((app, _)): State<(App, Readiness)>,
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

/// Whether calls should come here.
async fn ready(State((_, ready)): State<(App, Readiness)>) -> (StatusCode, Json<Report>) {
    let report = ready.report().await;
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report))
}
