//! Child processes with their output in files, ended by their number; and waiting for what they do.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

const POLL: Duration = Duration::from_millis(100);

/// Everything that waits gives up, so that every round clears up after itself.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ends all rounds of this process.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

pub(super) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Polls until something is there. Names what was waited for when it never is.
pub(super) async fn until<T>(
    what: &str,
    limit: Duration,
    mut seen: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(seen) = seen().await.with_context(|| what.to_owned())? {
            return Ok(seen);
        }
        if is_interrupted() {
            bail!("interrupted");
        }
        if Instant::now() >= end {
            bail!("{what}: not within {limit:?}");
        }
        sleep(POLL).await;
    }
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Its output is appended to `<dir>/<name>.err`.
    pub(super) fn start(name: &str, dir: &Path, command: &mut Command) -> Result<Self> {
        let said = File::options().create(true).append(true).open(said(dir, name))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .with_context(|| format!("can't start {name}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(super) fn number(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Fails where it has ended.
    pub(super) fn must_run(&mut self) -> Result<()> {
        match self.ended()? {
            Some(status) => bail!("{} ended by itself: {status}", self.name),
            None => Ok(()),
        }
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid(), signal).with_context(|| format!("{signal:?} to {}", self.name))
    }

    /// SIGKILL: nothing is tidied up.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// A signal, and the end that it leads to.
    pub(super) async fn end_by(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        self.signal(signal)?;
        let what = format!("the end of {} by {signal:?}", self.name);
        until(&what, limit, async || self.ended()).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _dead_by_now = self.kill();
        }
    }
}

/// Where a process writes what it says.
pub(super) fn said(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.err"))
}

/// Processes whose command line or folder is below this one: what was left behind.
pub fn left_in(dir: &Path) -> Vec<(i32, String)> {
    let mut left = Vec::new();
    for (pid, entry) in processes() {
        let line = std::fs::read(entry.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let cwd = std::fs::read_link(entry.join("cwd")).unwrap_or_default();
        if line.contains(&*dir.to_string_lossy()) || cwd.starts_with(dir) {
            left.push((pid, line));
        }
    }
    left
}

/// The children of a process.
pub(super) fn children(parent: u32) -> Vec<i32> {
    let is_child = |entry: &Path| {
        let stat = std::fs::read_to_string(entry.join("stat")).unwrap_or_default();
        // The name before the last parenthesis may hold anything.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        fields.split(' ').nth(1) == Some(&parent.to_string())
    };
    processes().filter(|(_, entry)| is_child(entry)).map(|(pid, _)| pid).collect()
}

pub(super) fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

pub(super) fn signal_all(pids: &[i32], signal: Signal) {
    for pid in pids.iter().filter_map(|&pid| Pid::from_raw(pid)) {
        let _gone_by_now = kill_process(pid, signal);
    }
}

fn processes() -> impl Iterator<Item = (i32, PathBuf)> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (pid != own).then(|| (pid, entry.path()))
    })
}
