//! What is configured of an agent.

use std::{collections::BTreeMap, path::PathBuf};

use kiln_core::Millis;
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
