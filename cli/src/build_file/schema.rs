//! The keys of a build file, version 1. An unknown key is an error: a typo must not change what is built.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Deserializer, de::Error};

use crate::units;

pub(crate) const VERSION: u32 = 1;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) version: u32,
    #[serde(default)]
    pub(crate) title: String,
    #[serde(default)]
    pub(crate) priority: i32,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) source: Option<Source>,
    pub(crate) jobs: Vec<Job>,
}

/// Exactly one of `git` and `path`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Source {
    pub(crate) git: Option<String>,
    #[serde(default)]
    pub(crate) r#ref: String,
    #[serde(default)]
    pub(crate) submodules: bool,
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Job {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) needs: Vec<Need>,
    pub(crate) backend: Option<String>,
    #[serde(default)]
    pub(crate) script: String,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) matrix: BTreeMap<String, Vec<Scalar>>,
    #[serde(default)]
    pub(crate) allow_failure: bool,
    #[serde(default)]
    pub(crate) priority: i32,
    #[serde(default)]
    pub(crate) artifacts: Vec<String>,
    pub(crate) retry: Option<Retry>,
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    #[serde(default)]
    pub(crate) constraints: Constraints,
    #[serde(default)]
    pub(crate) resources: Resources,
    pub(crate) container: Option<Container>,
    pub(crate) concurrency: Option<Concurrency>,
    pub(crate) source: Option<Source>,
    #[serde(default)]
    pub(crate) no_source: bool,
    #[serde(default)]
    pub(crate) secrets: Vec<String>,
}

/// `"a"`, or `{ job = "a", artifacts = true }`.
#[derive(Debug)]
pub(crate) struct Need {
    pub(crate) job: String,
    pub(crate) artifacts: bool,
}

/// A value of a matrix; numbers and booleans are taken as they are written.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Scalar {
    Text(String),
    Whole(i64),
    Truth(bool),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retry {
    #[serde(default)]
    pub(crate) max_attempts: i32,
    #[serde(default)]
    pub(crate) on: Vec<String>,
    #[serde(default)]
    pub(crate) backoff: Duration,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Timeouts {
    pub(crate) queue: Duration,
    pub(crate) total: Duration,
    pub(crate) stall: Duration,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Constraints {
    pub(crate) arch: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) min_cpus: Cpus,
    pub(crate) min_memory: Size,
    pub(crate) min_disk: Size,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Resources {
    pub(crate) cpus: Cpus,
    pub(crate) memory: Size,
    pub(crate) pids: i32,
    pub(crate) log: Size,
    pub(crate) artifacts: Size,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Container {
    pub(crate) image: String,
    #[serde(default)]
    pub(crate) pull: Pull,
    #[serde(default)]
    pub(crate) network: Network,
    #[serde(default)]
    pub(crate) read_only: bool,
    #[serde(default)]
    pub(crate) tmpfs: BTreeMap<String, Size>,
    #[serde(default)]
    pub(crate) user: String,
    #[serde(default)]
    pub(crate) cap_drop: Vec<String>,
    #[serde(default)]
    pub(crate) allow_new_privileges: bool,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pull {
    #[default]
    Missing,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Network {
    #[default]
    Bridge,
    None,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Concurrency {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) limit: i32,
}

/// Milliseconds, written as "10m".
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Duration(pub(crate) i64);

/// Bytes, written as "512MiB" or as a number.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Size(pub(crate) i64);

/// Thousandths of a processor, written as "1.5" or as a number.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cpus(pub(crate) i32);

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        units::duration(&text).map(Self).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        units::size(&number(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        units::cpus(&number(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        other => Err(D::Error::custom(format!("{other} is neither a text nor a number"))),
    }
}

impl<'de> Deserialize<'de> for Need {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            job: String,
            #[serde(default)]
            artifacts: bool,
        }
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(job) => Ok(Self { job, artifacts: false }),
            toml::Value::Table(table) => {
                let table: Table = table.try_into().map_err(D::Error::custom)?;
                Ok(Self { job: table.job, artifacts: table.artifacts })
            }
            _ => Err(D::Error::custom("a need is \"job\" or { job = \"job\", artifacts = true }")),
        }
    }
}
