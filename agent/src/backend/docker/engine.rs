//! The way to a container engine. The supervisors use it too, so its address must be all that is needed.

use std::time::Duration;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use bollard::{
    API_DEFAULT_VERSION, BollardRequest, Docker, errors::Error,
    query_parameters::KillContainerOptions,
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

/// For the head of an answer; streams may be longer.
const TIMEOUT_S: u64 = 120;
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(20);
const AUTH_HEADERS: [&str; 2] = ["x-registry-auth", "x-registry-config"];

/// Where the engine listens: `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Engine {
    host: String,
}

impl Engine {
    pub fn new(host: impl Into<String>) -> Self {
        Self { host: host.into() }
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn connect(&self) -> Result<Docker, Error> {
        let docker = Docker::connect_with_socket(&self.host, TIMEOUT_S, API_DEFAULT_VERSION)?;
        Ok(docker.with_request_modifier(url_safe_credentials))
    }

    /// Ends a container, whatever its state.
    pub(crate) async fn kill(&self, id: &str) {
        if let Ok(docker) = self.connect() {
            Self::signal(&docker, id, "SIGKILL").await;
        }
    }

    /// Sends a signal to a container that may be gone.
    pub(crate) async fn signal(docker: &Docker, id: &str, signal: &str) {
        let options = KillContainerOptions { signal: signal.to_owned() };
        let sent = timeout(SIGNAL_TIMEOUT, docker.kill_container(id, Some(options))).await;
        if let Ok(Err(error)) = sent {
            tracing::debug!(container = id, signal, %error, "the engine did not pass a signal on");
        }
    }
}

/// The client encodes credentials with the standard alphabet, the engine wants the URL-safe one and drops silently what it
/// can't read.
fn url_safe_credentials(mut request: BollardRequest) -> BollardRequest {
    for name in AUTH_HEADERS {
        if let Some(value) = request.headers_mut().get_mut(name)
            && let Ok(safe) = url_safe(value.as_bytes()).parse()
        {
            *value = safe;
        }
    }
    request
}

fn url_safe(standard: &[u8]) -> String {
    match STANDARD.decode(standard) {
        Ok(bytes) => URL_SAFE.encode(bytes),
        Err(_) => String::from_utf8_lossy(standard).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_all_bytes_reach_the_engine() {
        let password = r#"{"password":"??>>~~þÿ"}"#;
        let sent = url_safe(STANDARD.encode(password).as_bytes());
        assert!(!sent.contains(['+', '/']), "{sent}");
        assert_eq!(URL_SAFE.decode(sent).unwrap(), password.as_bytes());
    }
}
