//! `kiln up` as a process: what runs there ends with its own exit code, and the whole ends when asked to.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) struct Up {
    folder: tempfile::TempDir,
    child: Child,
    url: String,
    /// Variables of the commands that talk to it.
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Up {
    fn start() -> Self {
        Self::with(&[])
    }

    /// With these variables in its environment, and in that of the commands that talk to it.
    pub(crate) fn with(environment: &[(&'static str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = kiln(&folder);
        command.args(["up", "--listen", "127.0.0.1:0"]).stderr(Stdio::piped());
        command.envs(environment.iter().copied());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.split([' ', ',']).find(|word| word.starts_with("http://"));
        let url = url.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        let environment =
            environment.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { folder, child, url, environment }
    }

    /// Asks it to end, and waits until it has; its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }

    /// Runs a script as a build; its exit code and its output.
    pub(crate) fn run(&self, script: &str) -> (i32, String) {
        let mut command = kiln(&self.folder);
        command.args(["--server", &self.url, "run", "--no-source", "--", "sh", "-c", script]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}

fn kiln(folder: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", folder.path()).env("KILN_DATA", folder.path().join("data"));
    command
}

#[test]
fn a_run_prints_the_log_and_ends_as_its_program_did() {
    let mut up = Up::start();
    assert_eq!(up.run("echo hi"), (0, "hi\n".to_owned()));
    assert_eq!(up.run("echo no; exit 7"), (7, "no\n".to_owned()));
    assert_eq!(up.stop(), Some(0), "asked to end, it ends well");
}
