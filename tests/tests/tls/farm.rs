//! A server and agents of a test's own, as processes, and the command line to talk to them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::process::{Process, until};

/// Longer than anything here takes, on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

pub(crate) struct Farm {
    dir: TempDir,
    pub(crate) server: Option<Process>,
    pub(crate) agent: Option<Process>,
    /// `https://127.0.0.1:PORT`
    pub(crate) url: String,
}

fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("KILN_BIN").filter(|name| !name.is_empty()) {
        return named.into();
    }
    // target/debug/deps/tls-… has target/debug/kiln two steps up.
    let built = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("kiln");
    assert!(built.exists(), "{} is not there: cargo build -p kiln", built.display());
    built
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Farm {
    /// A server with these variables, on all addresses where TLS lets it.
    pub(crate) fn start(variables: &[(&str, &str)]) -> Self {
        // Short: paths of sockets below it must fit into 107 bytes.
        let dir = tempfile::Builder::new().prefix("kiln-t.").tempdir_in("/tmp").unwrap();
        let mut farm = Self { dir, server: None, agent: None, url: String::new() };
        // What `kiln run` packs.
        std::fs::create_dir(farm.path("empty")).unwrap();
        farm.start_server(variables, "0");
        farm
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn port(&self) -> &str {
        self.url.rsplit(':').next().unwrap()
    }

    pub(crate) fn start_server(&mut self, variables: &[(&str, &str)], port: &str) {
        let mut command = self.command(&["server"]);
        command.env("KILN_LISTEN", format!("127.0.0.1:{port}")).env("KILN_SWEEP_MS", "200");
        command.envs(variables.iter().copied()).arg("--data").arg(self.path("server"));
        command.env_remove("KILN_TOKEN");
        self.server = Some(Process::start("server", self.dir.path(), &mut command));
        self.url = until("where the server listens", PATIENCE, || {
            let server = self.server.as_mut().unwrap();
            assert!(server.ended().is_none(), "{}", server.said());
            let said = server.said();
            let line = said.lines().rev().find_map(|line| line.strip_prefix("listening on "))?;
            Some(line.split_whitespace().next()?.to_owned())
        });
        if let Some((scheme, _)) = self.url.split_once("://0.0.0.0") {
            self.url = format!("{scheme}://127.0.0.1:{}", self.port());
        }
    }

    /// Ends the server and starts it again where it was.
    pub(crate) fn restart_server(&mut self, variables: &[(&str, &str)]) {
        let port = self.port().to_owned();
        assert!(self.server.take().unwrap().terminate(PATIENCE).success());
        // It says anew where it listens.
        std::fs::remove_file(self.path("server.err")).unwrap();
        self.start_server(variables, &port);
    }

    /// Where the server writes down its authorities.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.path("server/ca.pem")
    }

    /// The fingerprint of the only authority.
    pub(crate) fn fingerprint(&self) -> String {
        let mut command = Command::new("openssl");
        command.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(self.ca_file());
        let said = text(&command.output().unwrap().stdout);
        said.split_once('=').unwrap().1.trim().to_owned()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).stdin(Stdio::null()).current_dir(self.path("empty"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KILN_") {
                command.env_remove(name);
            }
        }
        command.env("HOME", self.dir.path()).env("XDG_CONFIG_HOME", self.path("config"));
        command
    }

    /// A command as the administrator, who trusts what the variables or flags of the test say.
    pub(crate) fn admin(&self, arguments: &[&str]) -> Command {
        let token_file = self.path("server/admin.token");
        let mut command = self.command(&["--token-file", token_file.to_str().unwrap()]);
        command.env("KILN_SERVER", &self.url).args(arguments);
        command
    }

    /// The same, of one who has the file of the authority.
    pub(crate) fn trusting(&self, arguments: &[&str]) -> Command {
        let mut command = self.admin(arguments);
        command.env("KILN_CA_FILE", self.ca_file());
        command
    }

    /// Makes a token for an agent and returns its file.
    pub(crate) fn enroll_token(&self, name: &str) -> PathBuf {
        let token =
            succeeded(self.trusting(&["token", "create", name, "--role", "enroller", "-q"]));
        let path = self.path(&format!("{name}.token"));
        std::fs::write(&path, token).unwrap();
        path
    }

    /// Starts an agent; it enrols where its folder is empty.
    pub(crate) fn start_agent(&mut self, name: &str, token: Option<&Path>) {
        let mut command = self.command(&["agent", "--name", name]);
        command.env("KILN_SERVER", &self.url).env("KILN_CA_FILE", self.ca_file());
        command.env("KILN_AGENT_BACKENDS_DOCKER_ENABLED", "false");
        command.arg("--data").arg(self.path(name));
        if let Some(token) = token {
            command.arg("--enroll-token-file").arg(token);
        }
        self.agent = Some(Process::start(name, self.dir.path(), &mut command));
    }

    /// Ends the agent and starts it again.
    pub(crate) fn restart_agent(&mut self, name: &str) {
        assert!(self.agent.take().unwrap().terminate(PATIENCE).success());
        self.start_agent(name, None);
    }

    /// One command as a build, followed to its end.
    pub(crate) fn build(&self, words: &str) -> String {
        let command = self.trusting(&["run", "--backend", "shell", "--", "echo", words]);
        succeeded(command)
    }
}

pub(crate) fn succeeded(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// What a command says that fails.
pub(crate) fn failed(mut command: Command) -> String {
    let output: Output = command.output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{command:?} succeeded: {}", text(&output.stdout));
    println!("{said}");
    said
}

/// What `openssl s_client` sees of a server, with these arguments and nothing to say.
pub(crate) fn s_client(farm: &Farm, arguments: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &format!("127.0.0.1:{}", farm.port())]);
    command.arg("-CAfile").arg(farm.ca_file()).args(arguments).stdin(Stdio::null());
    let output = command.output().unwrap();
    text(&output.stdout) + &text(&output.stderr)
}
