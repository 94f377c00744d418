//! A server as a process of its own, so that its memory and its time can be told from those of agents and clients.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// A running `kiln` process; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    /// Where it listens.
    pub(crate) url: String,
}

impl Program {
    /// Starts `kiln` and waits until it says where it listens.
    pub(crate) fn start(arguments: &[&str], home: &Path) -> Result<Self> {
        let mut child = Command::new(kiln()?)
            .args(arguments)
            .env("HOME", home)
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let said = child.stderr.take().context("no pipe")?;
        let mut program = Self { child, url: String::new() };
        let mut lines = BufReader::new(said);
        let mut line = String::new();
        let mut all = String::new();
        while lines.read_line(&mut line)? > 0 {
            if let Some((_, rest)) = line.split_once("listening on ") {
                let url = rest.split([',', ' ', '\n']).next().unwrap_or_default();
                url.clone_into(&mut program.url);
                // A pipe that nobody reads would stop it in the middle of a word.
                std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
                return Ok(program);
            }
            all.push_str(&line);
            line.clear();
        }
        anyhow::bail!("kiln {arguments:?} ended: {all}")
    }

    /// User and system time of the process so far.
    pub(crate) fn cpu(&self) -> Duration {
        cpu_time(&self.child.id().to_string())
    }

    /// Megabytes in memory now.
    pub(crate) fn resident(&self) -> Result<f64> {
        self.status("VmRSS:")
    }

    /// Megabytes in memory at most since the last call.
    pub(crate) fn peak(&self) -> Result<f64> {
        let peak = self.status("VmHWM:")?;
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")?;
        Ok(peak)
    }

    fn status(&self, field: &str) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line =
            text.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1_024.0 / 1e6)
    }

    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end and waits.
    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process")?, Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "kiln ended with {status}");
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program beside this one.
pub(crate) fn kiln() -> Result<PathBuf> {
    let path = match std::env::var_os("KILN_BIN") {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()?.with_file_name("kiln"),
    };
    ensure!(path.exists(), "{} is missing: build it with the same profile", path.display());
    Ok(path)
}

/// User and system time of a process so far; `self` is this one.
pub(crate) fn cpu_time(process: &str) -> Duration {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<_> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|&at| fields.get(at)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
