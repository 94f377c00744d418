//! One process per job that outlives the agent: parent of the job's process or reader of its container's output, only
//! writer of the log spool, keeper of the size cap and the stall clock. It leaves how the job ended in a file.
//!
//! The agent's side is [`client`]; the process itself is [`supervise`]. They speak through the lease folder alone:
//! `supervisor.json` (what to do), `supervisor.pid` (who does it), `cancel` (please end), `exit.json` (how it ended).

pub(crate) mod client;
mod container;
mod exit;
mod identity;
mod process;
mod reaper;
mod signals;
mod spec;
mod spool;
mod watch;

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use rustix::fs::Mode;

pub use exit::{Ending, Exit};
pub use identity::Identity;
pub use spec::{Outlet, Spec, Task, Work};

use crate::run::replace;

/// Who the supervisor is.
pub(crate) const IDENTITY_FILE: &str = "supervisor.pid";
/// What it is told.
pub(crate) const SPEC_FILE: &str = "supervisor.json";
/// Its own errors.
pub(crate) const ERROR_FILE: &str = "supervisor.err";
/// There: the agent wants the job to end.
pub(crate) const CANCEL_FILE: &str = "cancel";
/// Why a job ends that must not run without a word of the server, whoever notices.
pub(crate) const FORSAKEN: &str =
    "no word from the server for too long: its concurrency group may go to another job";
/// How the job ended.
pub(crate) const EXIT_FILE: &str = "exit.json";
/// Held by the one supervisor of a lease for as long as it lives.
const LOCK_FILE: &str = "supervisor.lock";

/// The whole life of a supervisor; `spec` is the path of `supervisor.json`.
pub fn supervise(spec: &Path) -> ExitCode {
    match live(spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody_listens = writeln!(io::stderr(), "{}: {error}", spec.display());
            ExitCode::FAILURE
        }
    }
}

fn live(path: &Path) -> io::Result<()> {
    // A session of its own: no terminal, no signal that is meant for the agent's process group.
    let _leads_one_already = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let spec: Spec = serde_json::from_slice(&std::fs::read(path)?)?;
    let lock = File::create(spec.dir.join(LOCK_FILE))?;
    lock.try_lock()?;
    if spec.dir.join(IDENTITY_FILE).exists() {
        return Err(io::Error::other("this lease had a supervisor before"));
    }
    replace(&spec.dir.join(IDENTITY_FILE), Identity::own()?.to_string().as_bytes())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(watch::watch(&spec));
    // Names of hosts may still be looked up on a thread; nobody waits for it.
    runtime.shutdown_background();
    result
}
