//! Probes over plain HTTP.

use std::time::Duration;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// A database that takes longer to answer is not ready.
const WITHIN: Duration = Duration::from_secs(2);

pub(super) fn router(app: App, stop: CancellationToken) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state((app, stop))
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
