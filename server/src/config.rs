//! What a server is told: the fields of its TOML file, each with a default that works on one machine.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::app;

/// A field that can't be used, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    pub field: &'static str,
    pub message: String,
}

impl Invalid {
    fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self { field, message: message.into() }
    }
}

/// How a server runs. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where gRPC and HTTP are served. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Folder of logs, artifacts, the first administrator's token, and the database where it is SQLite by default.
    /// One server at a time uses it.
    pub data_dir: PathBuf,
    /// `sqlite:PATH` or `postgres://…`. Empty: `sqlite:<data_dir>/kiln.db`.
    pub database: String,
    /// Connections to the database at most.
    pub connections: u32,
    /// SQLite: a commit is on disk before it is acknowledged. Without, a crash of the machine may lose the last ones.
    pub durable: bool,
    /// Where artifacts are kept: `file:///PATH`. Empty: under `data_dir`.
    pub artifacts_url: String,
    /// Bytes of one artifact or source at most.
    pub max_artifact_bytes: u64,
    /// Days after which logs of builds that ended are removed. Zero: never.
    pub log_days: u32,
    /// Days after which artifacts of builds that ended are removed. Zero: never.
    pub artifact_days: u32,
    /// Callers must present a token. Agents must always present their credential.
    pub auth: bool,
    /// Allows to listen beyond this machine without `auth`.
    pub insecure: bool,
    /// Milliseconds between two heartbeats of an agent.
    pub heartbeat_ms: u64,
    /// Milliseconds of silence after which an agent is given up.
    pub grace_ms: u64,
    /// Milliseconds between two sweeps, which find what hints have missed.
    pub sweep_ms: u64,
    /// Milliseconds that a shutdown may take at most.
    pub shutdown_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7420)),
            data_dir: PathBuf::from("/var/lib/kiln"),
            database: String::new(),
            connections: 16,
            durable: true,
            artifacts_url: String::new(),
            max_artifact_bytes: 10 << 30,
            log_days: 0,
            artifact_days: 0,
            auth: true,
            insecure: false,
            heartbeat_ms: 10_000,
            grace_ms: 60_000,
            sweep_ms: 5_000,
            shutdown_ms: 10_000,
        }
    }
}

impl Config {
    /// Reads the text of a configuration file.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// What can be seen to be wrong without trying.
    pub fn check(&self) -> Result<(), Invalid> {
        if !self.auth && !self.insecure && !self.listen.ip().is_loopback() {
            let message = format!(
                "{} can be reached from other machines, and auth is off; turn auth on, listen on 127.0.0.1, or set insecure",
                self.listen
            );
            return Err(Invalid::new("listen", message));
        }
        if self.data_dir.as_os_str().is_empty() {
            return Err(Invalid::new("data_dir", "must name a folder"));
        }
        self.artifacts_dir()?;
        let schemes = ["sqlite:", "postgres://", "postgresql://"];
        if !schemes.iter().any(|scheme| self.database_url().starts_with(scheme)) {
            return Err(Invalid::new("database", "must be like sqlite:PATH or postgres://…"));
        }
        if self.connections == 0 {
            return Err(Invalid::new("connections", "must be at least 1"));
        }
        if self.heartbeat_ms == 0 || self.sweep_ms == 0 {
            return Err(Invalid::new("heartbeat_ms", "it and sweep_ms must be at least 1"));
        }
        if self.grace_ms < self.heartbeat_ms.saturating_mul(3) {
            let message = "must be at least three heartbeats: one may be lost, one may be late";
            return Err(Invalid::new("grace_ms", message));
        }
        Ok(())
    }

    /// The URL of the database.
    pub fn database_url(&self) -> String {
        if self.database.is_empty() {
            return format!("sqlite:{}", self.data_dir.join("kiln.db").display());
        }
        self.database.clone()
    }

    /// The folder of the artifacts.
    pub fn artifacts_dir(&self) -> Result<PathBuf, Invalid> {
        if self.artifacts_url.is_empty() {
            return Ok(self.data_dir.join("artifacts"));
        }
        let path = self.artifacts_url.strip_prefix("file://").map(PathBuf::from);
        path.filter(|path| path.is_absolute())
            .ok_or_else(|| Invalid::new("artifacts_url", "must be like file:///var/lib/artifacts"))
    }

    /// It is shared with other servers.
    pub fn is_postgres(&self) -> bool {
        self.database.starts_with("postgres")
    }

    pub fn timing(&self) -> app::Timing {
        app::Timing {
            heartbeat: Duration::from_millis(self.heartbeat_ms),
            grace: Duration::from_millis(self.grace_ms),
            sweep: Duration::from_millis(self.sweep_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_file_is_the_default_and_unknown_keys_are_refused() {
        assert_eq!(Config::from_toml("").unwrap(), Config::default());
        assert_eq!(Config::default().check(), Ok(()));
        let error = Config::from_toml("lisen = \"127.0.0.1:1\"").unwrap_err();
        assert!(error.to_string().contains("lisen"), "{error}");
    }

    #[test]
    fn nobody_is_let_in_without_a_token_by_mistake() {
        let open = Config::from_toml("listen = \"0.0.0.0:1\"\nauth = false").unwrap();
        assert_eq!(open.check().unwrap_err().field, "listen");
        assert_eq!(Config { insecure: true, ..open.clone() }.check(), Ok(()));
        assert_eq!(Config { auth: true, ..open }.check(), Ok(()));
        let local = Config { auth: false, ..Config::default() };
        assert_eq!(local.check(), Ok(()));
    }

    #[test]
    fn an_agent_is_not_given_up_for_one_lost_heartbeat() {
        let hasty = Config { grace_ms: 20_000, ..Config::default() };
        assert_eq!(hasty.check().unwrap_err().field, "grace_ms");
    }

    #[test]
    fn artifacts_are_in_the_data_folder_or_where_the_url_says() {
        let config = Config { data_dir: "/d".into(), ..Config::default() };
        assert_eq!(config.artifacts_dir(), Ok("/d/artifacts".into()));
        let there = Config { artifacts_url: "file:///a".into(), ..config.clone() };
        assert_eq!(there.artifacts_dir(), Ok("/a".into()));
        for url in ["s3://bucket", "file://relative", "/a"] {
            let wrong = Config { artifacts_url: url.into(), ..config.clone() };
            assert_eq!(wrong.check().unwrap_err().field, "artifacts_url", "{url}");
        }
    }

    #[test]
    fn the_database_is_in_the_data_folder_by_default() {
        let config = Config { data_dir: "/d".into(), ..Config::default() };
        assert_eq!(config.database_url(), "sqlite:/d/kiln.db");
        let shared = Config { database: "postgres://h/k".into(), ..config };
        assert_eq!(shared.database_url(), "postgres://h/k");
        let wrong = Config { database: "mysql://h/k".into(), ..shared };
        assert_eq!(wrong.check().unwrap_err().field, "database");
    }
}
