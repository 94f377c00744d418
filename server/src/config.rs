//! What a server is told: the fields of its TOML file, each with a default that works on one machine.
//!
//! One file a section under `config/`: a struct with defaults and a `check` that says everything that is wrong with it.
//! A new section is a file, a field of [`Config`], and a line in [`Config::check`]. The environment needs nothing more:
//! its names follow from the fields. Each struct is `#[serde(default, deny_unknown_fields)]`, and what is secret in it
//! serialises as a sign that it is there.

mod invalid;
mod limits;
mod metrics;
mod retention;
mod secrets;
mod storage;
mod tls;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::app;

pub use invalid::{Error, Invalid};
pub use limits::Limits;
pub use metrics::Metrics;
pub use retention::Retention;
pub use secrets::{KeyText, Secrets};
pub use storage::{Location, Storage};
pub use tls::Tls;

/// How a server runs. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where gRPC and HTTP are served. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Folder of logs, artifacts, the first administrator's token, and the database where it is SQLite by default.
    /// One server at a time uses it.
    #[serde(rename = "data")]
    pub data_dir: PathBuf,
    /// `sqlite:PATH` or `postgres://…`. Empty: `sqlite:<data>/kiln.db`.
    pub database: String,
    /// Connections to the database at most.
    pub connections: u32,
    /// SQLite: a commit is on disk before it is acknowledged. Without, a crash of the machine may lose the last ones.
    pub durable: bool,
    /// Bytes of one artifact or source at most.
    pub max_artifact_bytes: u64,
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
    /// Milliseconds between the moment when a server that is told to end is ready no more and its refusal of new
    /// calls: what a load balancer needs to see it. Zero where nothing stands before the server.
    pub drain_ms: u64,
    /// Milliseconds that the calls and streams, which are told to end then, may take at most.
    pub shutdown_ms: u64,
    pub limits: Limits,
    pub metrics: Metrics,
    pub retention: Retention,
    pub storage: Storage,
    /// Keys that encrypt secrets.
    pub secrets: Secrets,
    pub tls: Tls,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7420)),
            data_dir: PathBuf::from("/var/lib/kiln"),
            database: String::new(),
            connections: 16,
            durable: true,
            max_artifact_bytes: 10 << 30,
            auth: true,
            insecure: false,
            heartbeat_ms: 10_000,
            grace_ms: 60_000,
            sweep_ms: 5_000,
            drain_ms: 0,
            shutdown_ms: 10_000,
            limits: Limits::default(),
            metrics: Metrics::default(),
            retention: Retention::default(),
            storage: Storage::default(),
            secrets: Secrets::default(),
            tls: Tls::default(),
        }
    }
}

impl Config {
    /// Reads the text of a configuration file.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// What can be seen to be wrong without trying: all of it.
    pub fn check(&self) -> Result<(), Error> {
        let found: Vec<Invalid> = [
            self.check_own(),
            self.limits.check(),
            self.retention.check(),
            self.storage.check(),
            self.tls.check(),
        ]
        .concat();
        if found.is_empty() { Ok(()) } else { Err(Error(found)) }
    }

    /// The fields that stand in no section.
    fn check_own(&self) -> Vec<Invalid> {
        let mut found = vec![];
        let mut refuse = |refused, field, message: &str| {
            if refused {
                found.push(Invalid::new(field, message));
            }
        };
        let far = !self.listen.ip().is_loopback();
        let open = far && !self.auth && !self.insecure;
        let message = "can be reached from other machines, and auth is off; turn auth on, listen on 127.0.0.1, or set insecure";
        refuse(open, "listen", message);
        let readable = far && !self.tls.enabled && !self.tls.plaintext;
        let message = "can be reached from other machines, and nothing is encrypted: tokens, logs and secrets could be read on the way; set tls.enabled, listen on 127.0.0.1, or set tls.plaintext where a proxy in front has TLS";
        refuse(readable, "listen", message);
        refuse(self.data_dir.as_os_str().is_empty(), "data", "must name a folder");
        let schemes = ["sqlite:", "postgres://", "postgresql://"];
        let known = schemes.iter().any(|scheme| self.database_url().starts_with(scheme));
        refuse(!known, "database", "must be like sqlite:PATH or postgres://…");
        refuse(self.connections == 0, "connections", "must be at least 1");
        refuse(self.heartbeat_ms == 0, "heartbeat_ms", "must be at least 1");
        refuse(self.sweep_ms == 0, "sweep_ms", "must be at least 1");
        let hasty = self.grace_ms < self.heartbeat_ms.saturating_mul(3);
        let message = "must be at least three heartbeats: one may be lost, one may be late";
        refuse(hasty, "grace_ms", message);
        found
    }

    /// This configuration with what a running server can take over of a new one. A shorter `grace_ms` waits for a
    /// restart: agents rely on the one that they were told.
    #[must_use]
    pub fn reloaded(&self, new: &Self) -> Self {
        Self {
            grace_ms: self.grace_ms.max(new.grace_ms),
            limits: new.limits.clone(),
            retention: new.retention.clone(),
            ..self.clone()
        }
    }

    /// The URL of the database.
    pub fn database_url(&self) -> String {
        if self.database.is_empty() {
            return format!("sqlite:{}", self.data_dir.join("kiln.db").display());
        }
        self.database.clone()
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
            certificate: Duration::from_millis(self.tls.agent_certificate_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields that are refused.
    fn refused(config: &Config) -> Vec<&'static str> {
        config
            .check()
            .map_or_else(|error| error.0.iter().map(|one| one.field).collect(), |()| vec![])
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let text = "data = \"\"\nsweep_ms = 0\n[retention]\nlog_days = 99999";
        let config = Config::from_toml(text).unwrap();
        assert_eq!(refused(&config), ["data", "sweep_ms", "retention.log_days"]);
        let said = config.check().unwrap_err().to_string();
        assert!(said.contains("; sweep_ms: must be at least 1; "), "{said}");
    }

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
        assert_eq!(refused(&open), ["listen", "listen"]);
        let tls = Tls { enabled: true, ..Tls::default() };
        let encrypted = Config { tls, ..open };
        assert_eq!(refused(&encrypted), ["listen"]);
        assert_eq!(Config { insecure: true, ..encrypted.clone() }.check(), Ok(()));
        assert_eq!(Config { auth: true, ..encrypted }.check(), Ok(()));
        let local = Config { auth: false, ..Config::default() };
        assert_eq!(local.check(), Ok(()));
    }

    #[test]
    fn nothing_is_readable_on_the_way_by_mistake() {
        let open = Config::from_toml("listen = \"[::]:1\"").unwrap();
        assert_eq!(refused(&open), ["listen"]);
        let said = open.check().unwrap_err().to_string();
        assert!(said.contains("tls.enabled") && said.contains("tls.plaintext"), "{said}");
        let behind = Tls { plaintext: true, ..Tls::default() };
        assert_eq!(Config { tls: behind, ..open }.check(), Ok(()));
    }

    #[test]
    fn an_agent_is_not_given_up_for_one_lost_heartbeat() {
        let hasty = Config { grace_ms: 20_000, ..Config::default() };
        assert_eq!(refused(&hasty), ["grace_ms"]);
    }

    #[test]
    fn a_storage_url_is_checked_with_the_rest() {
        let wrong = Config::from_toml("[storage]\nurl = \"ftp://a\"").unwrap();
        assert_eq!(refused(&wrong), ["storage.url"]);
    }

    #[test]
    fn what_agents_rely_on_and_what_is_open_stays_until_a_restart() {
        let old = Config { connections: 3, grace_ms: 90_000, ..Config::default() };
        let new =
            Config::from_toml("grace_ms = 30000\nsweep_ms = 1\n[limits]\nstreams = 9").unwrap();
        let reloaded = old.reloaded(&new);
        assert_eq!(reloaded, Config { limits: new.limits.clone(), ..old.clone() });
        let longer = Config { grace_ms: 100_000, ..new };
        assert_eq!(old.reloaded(&longer).grace_ms, 100_000);
    }

    #[test]
    fn the_database_is_in_the_data_folder_by_default() {
        let config = Config { data_dir: "/d".into(), ..Config::default() };
        assert_eq!(config.database_url(), "sqlite:/d/kiln.db");
        let shared = Config { database: "postgres://h/k".into(), ..config };
        assert_eq!(shared.database_url(), "postgres://h/k");
        let wrong = Config { database: "mysql://h/k".into(), ..shared };
        assert_eq!(refused(&wrong), ["database"]);
    }
}
