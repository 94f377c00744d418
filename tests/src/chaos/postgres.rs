//! A Postgres cluster of one round, which may be killed.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::process::{Process, children, is_alive, signal_all, until};

const START: Duration = Duration::from_mins(3);
const STOP: Duration = Duration::from_mins(1);

/// The newest Postgres that is installed.
pub(super) fn binaries() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let with_number = |entry: fs::DirEntry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        let bin = entry.path().join("bin");
        bin.join("initdb").exists().then_some((number, bin))
    };
    versions.filter_map(with_number).max().map(|(_, bin)| bin)
}

#[derive(Debug)]
pub(super) struct Postgres {
    folder: PathBuf,
    bin: PathBuf,
    pub(super) port: u16,
    user: Option<(u32, u32)>,
    server: Option<Process>,
    /// Processes of a server that was killed: they hold its shared memory until they end.
    orphans: Vec<i32>,
}

impl Postgres {
    /// A new cluster below this folder, started.
    pub(super) async fn create(dir: &Path, port: u16) -> Result<Self> {
        let folder = dir.join("pg");
        fs::create_dir(&folder)?;
        let bin = binaries().context("no Postgres server is installed")?;
        // Postgres refuses to run as root.
        let user = if rustix::process::geteuid().is_root() { Some(account()?) } else { None };
        if let Some((uid, gid)) = user {
            chown(&folder, Some(uid), Some(gid))?;
        }
        let mut made = Self { folder, bin, port, user, server: None, orphans: vec![] };
        let mut init = made.command("initdb");
        init.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]);
        let output = init.arg("-D").arg(made.data()).output()?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        made.start().await?;
        Ok(made)
    }

    fn data(&self) -> PathBuf {
        self.folder.join("db")
    }

    pub(super) fn url(port: u16) -> String {
        format!("postgres://postgres@127.0.0.1:{port}/postgres")
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command.current_dir(&self.folder).stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    pub(super) async fn start(&mut self) -> Result<()> {
        let orphans = std::mem::take(&mut self.orphans);
        until("the end of Postgres' orphans", STOP, async || {
            Ok(orphans.iter().all(|&pid| !is_alive(pid)).then_some(()))
        })
        .await?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string(), "-c"]);
        command.arg(format!("unix_socket_directories={}", self.folder.display()));
        // Processes die here, machines don't.
        command.args([
            "-c",
            "fsync=off",
            "-c",
            "shared_buffers=16MB",
            "-c",
            "jit=off",
            "-c",
            "dynamic_shared_memory_type=mmap",
        ]);
        let parent = self.folder.parent().unwrap_or(&self.folder).to_owned();
        let mut server = Process::start("postgres", &parent, &mut command)?;
        until("an answer of Postgres", START, async || {
            server.must_run()?;
            let url = Self::url(self.port);
            let connect = tokio_postgres::connect(&url, tokio_postgres::NoTls);
            Ok(connect.await.is_ok().then_some(()))
        })
        .await?;
        self.server = Some(server);
        Ok(())
    }

    fn all(&self) -> Vec<i32> {
        let Some(server) = &self.server else { return vec![] };
        let mut all = children(server.number());
        all.extend(i32::try_from(server.number()));
        all
    }

    /// To all of its processes: each is a process group of its own.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        match (&self.server, signal) {
            (None, _) => bail!("Postgres does not run"),
            (Some(server), Signal::TERM) => server.signal(signal),
            _ => {
                signal_all(&self.all(), signal);
                Ok(())
            }
        }
    }

    pub(super) fn kill(&mut self) {
        self.orphans = self.all();
        signal_all(&self.orphans, Signal::KILL);
        self.server = None;
    }

    /// As a service manager stops it: clients are cut off.
    pub(super) async fn stop(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take()
            && server.ended()?.is_none()
        {
            server.end_by(Signal::INT, STOP).await?;
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        signal_all(&self.all(), Signal::CONT);
        signal_all(&self.all(), Signal::KILL);
    }
}

/// Number of the user `postgres` and of its group.
fn account() -> Result<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd")?;
    let line = passwd.lines().find(|line| line.starts_with("postgres:"));
    let mut fields = line.context("no user postgres")?.split(':').skip(2);
    let mut number = || fields.next().and_then(|field| field.parse().ok());
    number().zip(number()).context("the line of postgres in /etc/passwd")
}
