//! What is configured of an agent.

use std::{collections::BTreeMap, path::PathBuf};

use kiln_core::Millis;
use kiln_sdk::Fingerprint;
use serde::{Deserialize, Serialize};

use crate::backend;

/// All of it. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `http://host:port` or `https://host:port`.
    pub server: String,
    /// PEM of the authority that signed the server's certificate.
    pub ca_file: Option<PathBuf>,
    /// Its digest, as sha256:…; trusts it without a file. Empty: none.
    pub ca_fingerprint: String,
    /// Folder of the agent's identity and jobs. One agent at a time uses it.
    #[serde(rename = "data")]
    pub data_dir: PathBuf,
    /// Name to enrol as; the host's where it is empty.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// File with an enrolment token, used where the agent is not enrolled yet.
    pub enroll_token_file: Option<PathBuf>,
    /// Sources may be paths of this machine.
    pub allow_local_git: bool,
    /// From a polite request to end until a cancelled job is killed.
    pub cancel_grace_ms: Millis,
    /// A checkout that takes longer fails.
    pub checkout_limit_s: u64,
    /// An archive that unpacks to more is refused.
    pub source_bytes: u64,
    pub backends: backend::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: "http://127.0.0.1:7420".to_owned(),
            ca_file: None,
            ca_fingerprint: String::new(),
            data_dir: PathBuf::from("/var/lib/kiln/agent"),
            name: String::new(),
            labels: BTreeMap::new(),
            enroll_token_file: None,
            allow_local_git: false,
            cancel_grace_ms: 10_000,
            checkout_limit_s: 1_800,
            source_bytes: 20 << 30,
            backends: backend::Config::default(),
        }
    }
}

impl Config {
    /// The authority that is trusted without a file.
    pub fn fingerprint(&self) -> Result<Option<Fingerprint>, &'static str> {
        if self.ca_fingerprint.is_empty() {
            Ok(None)
        } else {
            self.ca_fingerprint.parse().map(Some)
        }
    }

    /// What can be seen to be wrong without trying: all of it, as the field and what to do.
    pub fn check(&self) -> Vec<(&'static str, String)> {
        let mut found = vec![];
        let mut refuse = |wrong: bool, field, message: &str| {
            if wrong {
                found.push((field, message.to_owned()));
            }
        };
        let host =
            ["http://", "https://"].iter().find_map(|scheme| self.server.strip_prefix(scheme));
        let reachable = host.is_some_and(|host| !host.is_empty() && !host.starts_with([':', '/']));
        refuse(!reachable, "server", "must be like http://host:port or https://host:port");
        let wrong = self.fingerprint().is_err();
        refuse(wrong, "ca_fingerprint", "must be like sha256:…, as `kiln ca show` prints it");
        refuse(self.data_dir.as_os_str().is_empty(), "data", "must name a folder");
        refuse(self.cancel_grace_ms < 0, "cancel_grace_ms", "must be at least 0");
        refuse(self.checkout_limit_s == 0, "checkout_limit_s", "must be at least 1");
        refuse(self.source_bytes == 0, "source_bytes", "must be at least 1");
        let backend::Config { shell, docker } = &self.backends;
        let message = "must be at least 1; to run none, set enabled = false";
        refuse(shell.enabled && shell.slots == 0, "backends.shell.slots", message);
        refuse(docker.enabled && docker.slots == 0, "backends.docker.slots", message);
        let message = "enable this backend or backends.docker: an agent without any takes no jobs";
        refuse(!shell.enabled && !docker.enabled, "backends.shell.enabled", message);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        assert_eq!(Config::default().check(), []);
        let text = "server = \"kiln:7420\"\ndata = \"\"\n[backends.shell]\nslots = 0";
        let config: Config = toml::from_str(text).unwrap();
        let fields: Vec<_> = config.check().into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["server", "data", "backends.shell.slots"]);
    }
}
