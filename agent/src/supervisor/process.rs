//! A job that is a process of this machine, and the supervisor as its parent.

use std::{
    collections::BTreeMap,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    pipe::fcntl_setpipe_size,
    process::{Pid, Signal, WaitStatus, getpid, kill_process_group, set_child_subreaper},
};
use tokio::{
    net::unix::pipe,
    signal::unix::{self, SignalKind},
};

use super::{
    exit::{Ending, Exit},
    reaper,
    watch::{Job, Output},
};
use crate::cgroup::Containment;

const PIPE_BYTES: usize = 1 << 20;
/// After the last process is dead nothing more can come; beyond it something outside holds the pipe.
const LINGER: Duration = Duration::from_secs(5);

/// The running process.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    containment: Containment,
    children: unix::Signal,
    status: Option<WaitStatus>,
}

impl Process {
    /// Starts it. An `Err` is the end of the job already.
    pub(super) fn start(
        argv: &[String],
        env: &BTreeMap<String, String>,
        cwd: &Path,
        containment: &Containment,
    ) -> Result<(Self, Output), Exit> {
        let children = unix::signal(SignalKind::child()).map_err(|error| broken(&error))?;
        set_child_subreaper(Some(getpid())).map_err(|error| broken(&error.into()))?;
        // One pipe for both, so that their order is kept; a pipe, so that reopening /dev/stderr truncates nothing.
        let (reader, writer) = io::pipe().map_err(|error| broken(&error))?;
        // A job that prints much is stopped less often; where the kernel gives no more, it is slower.
        let _smaller = fcntl_setpipe_size(&reader, PIPE_BYTES);
        let reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader));
        let reader = reader.map_err(|error| broken(&error))?;
        let second = writer.try_clone().map_err(|error| broken(&error))?;
        let mut words = containment.prefix().iter().copied().chain(argv.iter().map(String::as_str));
        let program = words.next().unwrap_or_default();
        let mut command = Command::new(program);
        command.args(words).env_clear().envs(env).current_dir(cwd).process_group(0);
        command.stdin(Stdio::null()).stdout(writer).stderr(second);
        let child = within(containment, || spawn(&mut command))
            .map_err(|error| broken(&error))?
            .map_err(|error| not_started(argv, cwd, &error))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Exit::new(Ending::Broken, "the process has no number"))?;
        let process = Self { pid, containment: containment.clone(), children, status: None };
        Ok((process, Output::new(reader, LINGER)))
    }
}

/// A script that was just written may still be open for writing in a child of the agent that has not yet begun its own
/// program.
fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut tries = 0;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < 100 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

/// The child is born where its parent is: in the job's groups, from its first instruction on.
fn within<T>(containment: &Containment, work: impl FnOnce() -> T) -> io::Result<T> {
    containment.prepare()?;
    let result = containment.enter().map(|()| work());
    containment.leave()?;
    result
}

fn broken(error: &io::Error) -> Exit {
    Exit::new(Ending::Broken, format!("the job's process can't be set up: {error}"))
}

fn not_started(argv: &[String], cwd: &Path, error: &io::Error) -> Exit {
    let program = argv.first().map_or("", String::as_str);
    let (code, message) = match error.kind() {
        io::ErrorKind::NotFound if !cwd.exists() => {
            return Exit::new(Ending::Broken, format!("no folder {}", cwd.display()));
        }
        io::ErrorKind::NotFound => {
            (127, format!("program not found: {program} (or the interpreter that it names)"))
        }
        io::ErrorKind::PermissionDenied => (126, format!("program is not executable: {program}")),
        io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => return broken(error),
        _ => (126, format!("program can't be started: {program}: {error}")),
    };
    Exit { code: Some(code), ..Exit::new(Ending::NotStarted, message) }
}

impl Job for Process {
    async fn ended(&mut self) {
        while self.status.is_none() {
            self.status = reaper::reap(self.pid).status;
            if self.status.is_none() && self.children.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn is_deserted(&mut self) -> bool {
        let reaped = reaper::reap(self.pid);
        self.status = self.status.or(reaped.status);
        reaped.none_left
    }

    async fn terminate(&mut self) {
        // Once: a handler that cleans up must not be run again by a second way.
        if !self.containment.signal(Signal::TERM) {
            let _dead_by_now = kill_process_group(self.pid, Signal::TERM);
        }
    }

    async fn kill(&mut self) {
        let _dead_by_now = kill_process_group(self.pid, Signal::KILL);
        self.containment.kill();
        let status = reaper::kill_children(self.pid);
        self.status = self.status.or(status);
    }

    async fn close(&mut self) -> Exit {
        self.kill().await;
        let oom = self.containment.oom_kills() > 0;
        self.containment.remove();
        Exit {
            code: self.status.and_then(WaitStatus::exit_status),
            signal: self.status.and_then(WaitStatus::terminating_signal),
            oom,
            ..Exit::new(Ending::Exited, "ended without a status")
        }
    }
}
