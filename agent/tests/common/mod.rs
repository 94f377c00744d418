//! A lease folder and a view of the world for one job.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

pub mod countdown;
pub mod rig;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use kiln_agent::{
    backend::Config,
    cgroup::{Containment, Host, Limits, Want},
    run::{Folder, Run},
    supervisor::{Task, Work},
};
use kiln_core::{
    id::{BuildId, JobId, LeaseId},
    session::Assignment,
    spec::JobSpec,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const LIMIT: Duration = Duration::from_secs(30);

pub fn run_in(dir: &Path, lease: LeaseId) -> Run {
    let folder = Folder::new(dir);
    folder.make_workspace().unwrap();
    Run {
        lease,
        folder,
        secrets: vec![],
        cancel: CancellationToken::new(),
        grace_ms: 500,
        lifeline_ms: 0,
        supervisor: PathBuf::from(env!("CARGO_BIN_EXE_kiln-supervise")),
        now: || 0,
    }
}

pub fn lease() -> LeaseId {
    LeaseId::from_uuid(Uuid::now_v7())
}

/// Another agent with the same lease, as a process that can be killed.
pub fn other_agent(run: &Run, spec: JobSpec, backends: &Config) -> Command {
    let job = serde_json::to_vec(&assignment(run, spec)).unwrap();
    fs::write(run.dir().join("assignment.json"), job).unwrap();
    let backends = serde_json::to_vec(backends).unwrap();
    fs::write(run.dir().join("backends.json"), backends).unwrap();
    let mut command = Command::new(&run.supervisor);
    command.arg("run").arg(run.dir());
    command
}

/// A folder that goes away, and the run in it.
pub fn run() -> (tempfile::TempDir, Run) {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(dir.path(), lease());
    (dir, run)
}

pub fn contain(run: &Run, want: Want, limits: Limits) -> Containment {
    Host::detect(want).contain(&run.lease.to_string(), limits)
}

/// A process without bounds.
pub fn task(run: &Run, argv: &[&str]) -> Task {
    Task {
        work: Work::Process {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: BTreeMap::from([
                ("PATH".to_owned(), "/usr/bin:/bin:/usr/sbin:/sbin".to_owned()),
                ("KILN_LEASE".to_owned(), run.lease.to_string()),
            ]),
            cwd: run.workspace(),
            containment: contain(run, Want::Auto, Limits::default()),
        },
        log_bytes: 1 << 30,
        stall_ms: 0,
    }
}

pub fn script(run: &Run, text: &str) -> Task {
    task(run, &["/bin/sh", "-c", text])
}

pub fn log(run: &Run) -> String {
    String::from_utf8_lossy(&fs::read(run.folder.spool("main")).unwrap_or_default()).into_owned()
}

/// Waits for something that another process does.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + LIMIT;
    while !done() {
        assert!(tokio::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The number that a job printed behind a word.
pub fn number(run: &Run, word: &str) -> Option<i32> {
    let log = log(run);
    let mut lines = log.lines().filter_map(|line| line.strip_prefix(word));
    lines.next()?.trim().parse().ok()
}

pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}

pub fn assignment(run: &Run, spec: JobSpec) -> Assignment {
    Assignment {
        lease: run.lease,
        job: JobId::from_uuid(Uuid::from_u128(1)),
        build: BuildId::from_uuid(Uuid::from_u128(2)),
        project: "kiln".to_owned(),
        attempt: 3,
        spec: JobSpec { name: "test".to_owned(), ..spec },
        inputs: vec![],
        exclusive: false,
        trace: None,
    }
}

pub fn script_spec(text: &str) -> JobSpec {
    JobSpec { script: text.to_owned(), ..JobSpec::default() }
}
