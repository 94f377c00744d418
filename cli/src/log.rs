//! The log of this process: lines on standard error, as text for people or as JSON for machines.

use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use crate::{
    args::Global,
    settings::{self, Flags},
};

/// Of the variables that say what is logged.
pub(crate) const PREFIX: &str = "KILN_LOG_";
/// What the schema consists of is nobody's news.
const QUIET: &str = "sea_orm_migration=warn,sqlx=warn";

/// `[log]`: what is logged, and how. One of a process, whatever roles it has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// Levels by part of the program and by field, as `info,kiln_server=debug`.
    pub(crate) filter: String,
    pub(crate) format: Format,
}

/// How a line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

impl settings::Config for Log {
    fn refused(&self) -> Vec<(&'static str, String)> {
        let wrong = EnvFilter::builder().parse(&self.filter).err();
        let why = |error| format!("can't be used: {error}; write it like info,kiln_server=debug");
        wrong.map(|error| ("filter", why(error))).into_iter().collect()
    }

    fn reloaded(&self, new: &Self) -> Self {
        Self { filter: new.filter.clone(), ..self.clone() }
    }
}

/// The flag that roles have.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LogOptions {
    /// How lines of the log are written: text or json [env: KILN_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl LogOptions {
    pub(crate) fn flags(&self, global: &Global) -> Flags {
        Flags::default().set("log.format", "--log-format", self.log_format.clone()).set(
            "log.filter",
            "--verbose",
            verbose(global.verbose),
        )
    }
}

/// The filter of `level`, what nobody asked for left out.
pub(crate) fn filter(level: &str) -> String {
    format!("{level},{QUIET}")
}

fn verbose(times: u8) -> Option<&'static str> {
    match times {
        0 => None,
        1 => Some("info"),
        2 => Some("debug"),
        _ => Some("trace"),
    }
}

/// Changes what is logged.
#[derive(Debug)]
pub(crate) struct Handle(reload::Handle<EnvFilter, Registry>);

impl Handle {
    /// A filter that was checked takes the place of the one before.
    pub(crate) fn set(&self, log: &Log) {
        // It fails only when the subscriber is gone, and with it everyone who would read of it.
        let _ = self.0.reload(EnvFilter::new(&log.filter));
    }
}

/// Logs from now on. A second call in a process changes nothing.
pub(crate) fn start(log: &Log, color: bool) -> Handle {
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&log.filter));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(color && log.format == Format::Text)
        // It would be said on the stream that just failed, by a macro that panics then.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let lines = match log.format {
        Format::Text => lines.with_target(false).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    // A second subscriber is never installed; the first one stays.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    Handle(handle)
}

/// Logs of a command that is no role: what `level` says, unless the environment or the command line asks for more.
pub(crate) fn start_command(global: &Global, level: &str, color: bool) {
    let asked = std::env::var(format!("{PREFIX}FILTER")).ok().filter(|text| !text.is_empty());
    let filter = asked
        .or_else(|| verbose(global.verbose).map(str::to_owned))
        .unwrap_or_else(|| filter(level));
    start(&Log { filter, format: Format::Text }, color);
}
