//! What the long-running roles share: signals, logs, and how they fail.

use std::{collections::HashSet, error::Error};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{cmd::Result, exit::ExitStatus, failure::Failure, printer::Printer};

pub(crate) fn label(text: &str) -> std::result::Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Asks everything to end, at the first SIGINT or SIGTERM; the second ends the process.
#[derive(Debug)]
pub(crate) struct Stop {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Stop {
    pub(crate) fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.tasks.close();
    }
}

pub(crate) fn stop_on_signal(printer: &Printer) -> Result<Stop> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = Stop { token: CancellationToken::new(), tasks: TaskTracker::new() };
    let (token, printer) = (stop.token(), printer.clone());
    stop.tasks.spawn(async move {
        let mut asked = false;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if asked {
                std::process::exit(130);
            }
            asked = true;
            printer.note("stopping; once more to stop at once");
            token.cancel();
        }
    });
    Ok(stop)
}

/// A role ended with an error: its whole chain, on one line, each part once.
pub(crate) fn failed(who: &str, error: &(dyn Error + 'static)) -> Failure {
    let mut seen = HashSet::new();
    let mut parts = vec![];
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if seen.insert(text.clone()) {
            parts.push(text);
        }
        next = error.source();
    }
    Failure::new(ExitStatus::Unavailable, format!("{who}: {}", parts.join(": ")))
}

/// Logs go to stderr; KILN_LOG filters them, as `info,kiln_server=debug`.
pub(crate) fn log(verbose: u8, default: &str, color: bool) {
    use tracing_subscriber::EnvFilter;
    let level = match verbose {
        0 => default,
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    // What the schema consists of is nobody's news.
    let quiet = if verbose == 0 { ",sea_orm_migration=warn,sqlx=warn" } else { "" };
    let filter = EnvFilter::try_from_env("KILN_LOG")
        .unwrap_or_else(|_| EnvFilter::new(format!("{level}{quiet}")));
    let layer = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(color)
        // It would be said on the stream that just failed, by a macro that panics then.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    // A second subscriber is never installed; the first one stays.
    let _ = layer.with_target(false).try_init();
}
