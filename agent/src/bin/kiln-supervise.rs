//! A stand-in for the one binary in the tests of this crate, which can't build that: a supervisor, or an agent to kill.

use std::{
    env::args_os,
    error::Error,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use kiln_agent::{
    backend,
    clock::wall_ms,
    run::{Folder, Run},
};
use kiln_core::session::Assignment;
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    match args_os().skip(1).collect::<Vec<OsString>>().as_slice() {
        [verb, spec] if verb == "supervise" => kiln_agent::supervise(Path::new(spec)),
        [verb, dir] if verb == "run" => run(Path::new(dir)),
        _ => ExitCode::FAILURE,
    }
}

/// Runs the job of a lease folder, as an agent does: `assignment.json` by the backends of `backends.json`.
fn run(dir: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(job(dir)));
    result.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

async fn job(dir: &Path) -> Result<(), Box<dyn Error>> {
    let job: Assignment = serde_json::from_slice(&fs::read(dir.join("assignment.json"))?)?;
    let config: backend::Config = serde_json::from_slice(&fs::read(dir.join("backends.json"))?)?;
    let backends = backend::all(&config, "stand-in");
    let backend = backends.iter().find(|backend| backend.kind() == job.spec.backend);
    let folder = Folder::new(dir);
    folder.make_workspace()?;
    let run = Run {
        lease: job.lease,
        folder,
        secrets: vec![],
        cancel: CancellationToken::new(),
        grace_ms: 1_000,
        lifeline_ms: 0,
        supervisor: PathBuf::from("/proc/self/exe").canonicalize()?,
        now: wall_ms,
    };
    Ok(backend.ok_or("no such backend")?.run(&job, &run).await?)
}
