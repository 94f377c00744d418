//! `kiln admin`: what is done on the machine of a server, beside it: backup and restore of the embedded database.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use kiln_agent::Config as Agent;
use kiln_server::{
    Config,
    backup::{self, Error, Summary},
};
use serde_json::json;

use crate::{
    cmd::{
        Cx, Result, agent,
        server::{Configured, Options},
    },
    exit::ExitStatus,
    failure::Failure,
    roles,
    settings::{Flags, Part},
    time, units,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write database, logs and artifacts to a file while the server runs; keys and tokens of files stay out
    Backup {
        /// The file to make
        file: PathBuf,
        #[command(flatten)]
        options: Options,
    },
    /// Restore a backup into an empty data folder, before its server starts
    Restore {
        /// What `kiln admin backup` made
        file: PathBuf,
        #[command(flatten)]
        options: Options,
    },
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        match self.command {
            Command::Backup { file, options } => {
                let config = config(&options)?;
                let done = backup::backup(&config, &file, time::now()).await;
                let done = done.map_err(|error| failed("the backup", &error))?;
                show(cx, &file, &done, &format!("{} holds", file.display()))?;
                cx.printer.note("the keys of secrets and admin.token are not in it: keep them elsewhere; without its key, no secret can be read");
                if let Some(url) = &done.elsewhere {
                    cx.printer.note(format!("logs and artifacts are not in it: back up {url}"));
                }
            }
            Command::Restore { file, options } => {
                let config = config(&options)?;
                let done = backup::restore(&config, &file).await;
                let done = done.map_err(|error| failed("the restore", &error))?;
                let made = time::moment(done.created_ms);
                show(cx, &file, &done, &format!("restored, as of {made}:"))?;
                let data = config.data_dir.display();
                cx.printer.note(format!("before the server starts, put the keys of secrets back ({data}/secrets.key, or where secrets.key_file is), and admin.token if you want it there"));
            }
        }
        Ok(ExitStatus::Succeeded)
    }
}

fn config(options: &Options) -> Result<Config> {
    let mut settings = options.settings(Flags::default())?;
    // The file may be that of `kiln up`.
    let _: Part<Agent> = settings.part("agent.", agent::PREFIX, &[]);
    Ok(Configured::of(settings)?.server.config)
}

fn show(cx: &Cx<'_>, file: &Path, done: &Summary, what: &str) -> Result<()> {
    if cx.printer.is_json() {
        let value = json!({
            "file": file.display().to_string(),
            "files": done.files,
            "bytes": done.bytes,
            "created_ms": done.created_ms,
            "elsewhere": done.elsewhere,
        });
        return Ok(cx.printer.json(&value)?);
    }
    let size = units::show_size(i64::try_from(done.bytes).unwrap_or(i64::MAX));
    Ok(cx.printer.line(format!("{what} {} files, {size}", done.files))?)
}

fn failed(who: &str, error: &Error) -> Failure {
    let status = match error {
        Error::Store(_) | Error::Io { .. } | Error::Restless { .. } => ExitStatus::Unavailable,
        _ => ExitStatus::Usage,
    };
    Failure { status, ..roles::failed(who, error) }
}
