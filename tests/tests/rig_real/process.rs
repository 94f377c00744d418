//! Child processes with their output in files, ended by pid and waited for.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Polls until something is there. Names what was waited for when it never is.
pub(crate) fn until<T>(what: &str, limit: Duration, mut seen: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(seen) = seen() {
            return seen;
        }
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(50));
    }
}

/// A process that is killed when it is dropped, whatever happened to the test.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Process {
    pub(crate) fn start(name: &str, dir: &Path, command: &mut Command) -> Self {
        let (out, err) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        let open = |path| File::options().create(true).append(true).open(path).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(open(&out))
            .stderr(open(&err))
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name: name.to_owned(), child, out, err }
    }

    /// What it printed so far.
    pub(crate) fn out(&self) -> Vec<u8> {
        std::fs::read(&self.out).unwrap()
    }

    /// The end of what it said on stderr, for messages.
    pub(crate) fn said(&self) -> String {
        let text = std::fs::read(&self.err).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(3_000)..]).into_owned();
        format!("--- {} said:\n{text}", self.name)
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = format!("the end of {}", self.name);
        until(&name, limit, || self.ended())
    }

    /// SIGKILL: nothing is tidied up.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the exit it leads to.
    pub(crate) fn terminate(&mut self, limit: Duration) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.wait(limit)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
    }
}
