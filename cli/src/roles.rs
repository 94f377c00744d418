//! What the long-running roles share: signals, and how they fail.

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

    /// At each SIGHUP, reads the configuration again: `reload` takes over what can be, and names what needs a restart.
    pub(crate) fn on_hangup(
        &self,
        mut reload: impl FnMut() -> Result<Vec<String>> + Send + 'static,
    ) -> Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let token = self.token();
        self.tasks.spawn(async move {
            while let Some(Some(())) = token.run_until_cancelled(hangup.recv()).await {
                match reload() {
                    Ok(kept) if kept.is_empty() => {
                        tracing::info!("the configuration was read again");
                    }
                    Ok(kept) => tracing::warn!(
                        fields = kept.join(", "),
                        "the configuration was read again; these fields need a restart to change"
                    ),
                    Err(failure) => tracing::error!(
                        error = failure.line(),
                        "the configuration stays as it is: the new one can't be used"
                    ),
                }
            }
        });
        Ok(())
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
