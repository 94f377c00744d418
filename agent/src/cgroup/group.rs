//! One control group: a folder of the kernel.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// Rounds of killing before a group counts as unkillable; a fork bomb loses within a few.
const KILL_ROUNDS: u32 = 200;
const ROUND: Duration = Duration::from_millis(10);

/// The two interfaces of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    V1,
    V2,
}

/// A group of one job in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub version: Version,
    pub path: PathBuf,
    /// Where the agent and its supervisors are.
    pub home: PathBuf,
    /// Files of the kernel and what to write into them. A file that is not there is passed over where it is optional.
    pub settings: Vec<Setting>,
}

/// A limit, as the kernel wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    pub file: String,
    pub value: String,
    pub optional: bool,
}

impl Group {
    pub(super) fn create(&self) -> io::Result<()> {
        fs::create_dir_all(&self.path).map_err(|error| named(&self.path, &error))?;
        for setting in &self.settings {
            let file = self.path.join(&setting.file);
            match fs::write(&file, &setting.value) {
                Err(_) if setting.optional && !file.exists() => {}
                other => other.map_err(|error| named(&file, &error))?,
            }
        }
        Ok(())
    }

    pub(super) fn signal(&self, signal: Signal) {
        for dir in self.tree() {
            for pid in processes(&dir) {
                let _gone = kill_process(pid, signal);
            }
        }
    }

    pub(super) fn kill(&self) -> bool {
        for _ in 0..KILL_ROUNDS {
            if self.is_empty() {
                return true;
            }
            // One write ends the whole tree where the kernel can (5.14); else nothing may fork while it is listed.
            if fs::write(self.path.join("cgroup.kill"), "1").is_err() {
                let state = self.path.join("freezer.state");
                let _no_freezer = fs::write(&state, "FROZEN");
                self.signal(Signal::KILL);
                let _no_freezer = fs::write(&state, "THAWED");
            }
            sleep(ROUND);
        }
        self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.tree().iter().all(|dir| processes(dir).is_empty())
    }

    pub(super) fn oom_kills(&self) -> u64 {
        ["memory.events", "memory.oom_control"]
            .iter()
            .filter_map(|file| fs::read_to_string(self.path.join(file)).ok())
            .filter_map(|text| {
                let mut lines = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
                lines.next()?.trim().parse::<u64>().ok()
            })
            .sum()
    }

    /// The job may have made groups below its own.
    pub(super) fn remove(&self) {
        for dir in self.tree().iter().rev() {
            // Busy until the last dead process is reaped.
            for _ in 0..50 {
                match fs::remove_dir(dir) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => sleep(ROUND),
                    _ => break,
                }
            }
        }
    }

    /// The group and all below it, parents first.
    fn tree(&self) -> Vec<PathBuf> {
        let mut dirs = vec![self.path.clone()];
        let mut next = 0;
        while let Some(dir) = dirs.get(next) {
            let children = fs::read_dir(dir).into_iter().flatten().flatten();
            let children: Vec<_> = children
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path())
                .collect();
            dirs.extend(children);
            next += 1;
        }
        dirs
    }

    /// Moves the calling thread in: what it starts from now on is born here.
    pub(super) fn enter(&self) -> io::Result<()> {
        self.version.join(&self.path)
    }

    /// Moves it back to where it was.
    pub(super) fn leave(&self) -> io::Result<()> {
        self.version.join(&self.home)
    }
}

impl Version {
    /// Version 1 takes a thread that moves itself at once. Version 2 takes whole processes only: none of the machine may
    /// fork or end meanwhile, and getting there takes the kernel some ten milliseconds.
    fn join(self, group: &Path) -> io::Result<()> {
        let (file, who) = match self {
            Self::V1 => ("tasks", "0".to_owned()),
            Self::V2 => ("cgroup.procs", std::process::id().to_string()),
        };
        let file = group.join(file);
        fs::write(&file, who).map_err(|error| named(&file, &error))
    }
}

fn processes(dir: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
