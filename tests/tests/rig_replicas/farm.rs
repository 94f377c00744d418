//! Three servers of one database and one bucket, a balancer before them, and agents.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use kiln_tests::chaos::left_in;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    balancer::Balancer,
    harness::{BUILD, START, binary, id, name_of, postgres, variable},
    process::{Process, until},
};

pub(crate) const SERVERS: usize = 3;
const STOP: Duration = Duration::from_mins(1);
/// The exit code of a command that found no server.
const UNAVAILABLE: i32 = 4;
/// A token that no server knows: its refusal tells that the server is up.
const NOBODY: &str = "nobody";

#[derive(Debug)]
pub(crate) struct Farm {
    dir: TempDir,
    bin: PathBuf,
    database: String,
    ports: Vec<u16>,
    pub(crate) servers: Vec<Option<Process>>,
    agents: Vec<Process>,
    pub(crate) balancer: Balancer,
    token: String,
}

impl Farm {
    /// All servers at once, on an empty database. `config` is more TOML for each. None where the rig is not up.
    pub(crate) fn start(config: &str) -> Option<Self> {
        let wanted = ["KILN_TEST_POSTGRES", "KILN_TEST_S3"];
        if let Some(missing) = wanted.into_iter().find(|name| variable(name).is_none()) {
            assert!(variable("KILN_TEST_REQUIRE").as_deref() != Some("1"), "{missing} is not set");
            println!("skipped: {missing} is not set");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("kiln-t.").tempdir_in("/tmp").unwrap();
        // Held until all are known, so that they differ.
        let free: Vec<_> =
            (0..SERVERS).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = free.iter().map(|free| free.local_addr().unwrap().port()).collect();
        drop(free);
        std::fs::write(dir.path().join("server.toml"), config).unwrap();
        let mut farm = Self {
            bin: binary(),
            database: postgres::create(&name_of(dir.path())),
            balancer: Balancer::start(ports.clone()),
            servers: (0..SERVERS).map(|_| None).collect(),
            agents: vec![],
            token: NOBODY.to_owned(),
            ports,
            dir,
        };
        for server in 0..SERVERS {
            farm.spawn_server(server);
        }
        for server in 0..SERVERS {
            farm.await_server(server);
        }
        farm.token = farm.first_token();
        Some(farm)
    }

    /// One of them made the first administrator, and only that one says so.
    fn first_token(&self) -> String {
        let file = |server| std::fs::read_to_string(self.data(server).join("admin.token"));
        let tokens: Vec<_> = (0..SERVERS).filter_map(|server| file(server).ok()).collect();
        assert_eq!(tokens.len(), 1, "each of these files must hold a token that is valid");
        tokens[0].trim().to_owned()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn data(&self, server: usize) -> PathBuf {
        self.path(&format!("server-{server}"))
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    fn spawn_server(&mut self, server: usize) {
        let mut command = Command::new(&self.bin);
        let (endpoint, prefix) = (variable("KILN_TEST_S3").unwrap(), name_of(self.dir.path()));
        let (endpoint, bucket) = endpoint.rsplit_once('/').unwrap();
        command.arg("server").arg("--config").arg(self.path("server.toml"));
        command.arg("--listen").arg(format!("127.0.0.1:{}", self.ports[server]));
        command.arg("--data").arg(self.data(server)).current_dir(self.dir.path());
        command.env("KILN_DATABASE", &self.database).env("NO_COLOR", "1");
        command.env("KILN_STORAGE_URL", format!("s3://{bucket}/{prefix}"));
        command.env("AWS_ENDPOINT_URL", endpoint).env("AWS_ALLOW_HTTP", "true");
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "never-shown");
        let name = format!("server-{server}");
        self.servers[server] = Some(Process::start(&name, self.dir.path(), &mut command));
    }

    fn await_server(&mut self, server: usize) {
        until("an answer of a server", START, || {
            let ended = self.servers[server].as_mut().and_then(Process::ended);
            assert!(ended.is_none(), "server {server} ended: {ended:?}");
            let code = self.try_cli(self.ports[server], &["list"]).status.code();
            (code != Some(UNAVAILABLE)).then_some(())
        });
    }

    pub(crate) fn start_server(&mut self, server: usize) {
        self.spawn_server(server);
        self.await_server(server);
    }

    /// SIGTERM; it must end by itself, and well.
    pub(crate) fn stop_server(&mut self, server: usize) {
        let mut process = self.servers[server].take().unwrap();
        let status = process.terminate(STOP);
        assert!(status.success(), "{status}: {}", process.said());
    }

    pub(crate) fn kill_server(&mut self, server: usize) {
        self.servers[server].take().unwrap().kill();
    }

    /// An agent of this server.
    pub(crate) fn start_agent(&mut self, port: u16) {
        let name = format!("agent-{}", self.agents.len());
        let made = self.json(port, &["token", "create", &name, "--role", "enroller"]);
        let token = self.path(&format!("{name}.enrol"));
        std::fs::write(&token, made["secret"].as_str().unwrap()).unwrap();
        let mut command = self.command(port, &["agent", "--name", &name]);
        command.arg("--enroll-token-file").arg(token).arg("--data").arg(self.path(&name));
        self.agents.push(Process::start(&name, self.dir.path(), &mut command));
        until("the agent on line", START, || {
            let agents = self.json(port, &["agents", "list"]);
            let up = |agent: &Value| agent["state"] == "online" && agent["name"] == name.as_str();
            agents["agents"].as_array()?.iter().any(up).then_some(())
        });
    }

    pub(crate) fn port(&self, server: usize) -> u16 {
        self.ports[server]
    }

    fn command(&self, port: u16, args: &[&str]) -> Command {
        let mut command = Command::new(&self.bin);
        command.args(args).current_dir(self.dir.path());
        command.env("KILN_SERVER", format!("http://127.0.0.1:{port}"));
        command.env("XDG_CONFIG_HOME", self.path("config")).env("NO_COLOR", "1");
        command.env("KILN_TOKEN", &self.token);
        command
    }

    fn try_cli(&self, port: u16, args: &[&str]) -> Output {
        self.command(port, args).output().unwrap()
    }

    /// What a command prints; it must succeed.
    pub(crate) fn cli(&self, port: u16, args: &[&str]) -> Vec<u8> {
        let output = self.try_cli(port, args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kiln {}: {}: {said}", args.join(" "), output.status);
        output.stdout
    }

    pub(crate) fn json(&self, port: u16, args: &[&str]) -> Value {
        let printed = self.cli(port, &[args, &["--output", "json"]].concat());
        serde_json::from_slice(&printed).unwrap()
    }

    pub(crate) fn background(&self, name: &str, port: u16, args: &[&str]) -> Process {
        Process::start(name, self.dir.path(), &mut self.command(port, args))
    }

    pub(crate) fn submit(&self, port: u16, jobs: &str) -> String {
        let path = self.path("build.toml");
        std::fs::write(&path, format!("version = 1\n{jobs}")).unwrap();
        let build = self.json(port, &["submit", "-f", &path.display().to_string()]);
        id(&build["build"]).to_owned()
    }

    pub(crate) fn job(&self, port: u16, build: &str, name: &str) -> Value {
        let seen = self.json(port, &["show", build]);
        let job = seen["jobs"].as_array().unwrap().iter().find(|job| job["name"] == name);
        job.unwrap_or_else(|| panic!("{build} has no job {name}: {seen:#}")).clone()
    }

    /// Waits until the build is over.
    pub(crate) fn done(&self, port: u16, build: &str) -> Value {
        until(&format!("the end of {build}"), BUILD, || {
            let seen = self.json(port, &["show", build]);
            let over = ["succeeded", "failed", "cancelled"];
            over.iter().any(|state| seen["build"]["state"] == *state).then_some(seen)
        })
    }

    /// Ends all politely; nothing may be left, and nobody may have said a secret.
    pub(crate) fn finish(mut self) {
        for process in self.agents.drain(..).chain(self.servers.drain(..).flatten()) {
            let mut process = process;
            let status = process.terminate(STOP);
            assert!(status.success(), "{status}: {}", process.said());
        }
        assert_eq!(left_in(self.dir.path()), []);
        for server in 0..SERVERS {
            let said = std::fs::read(self.path(&format!("server-{server}.err"))).unwrap();
            let said = String::from_utf8_lossy(&said);
            assert!(!said.contains("never-shown"), "a server logs its credentials");
        }
        postgres::drop(&name_of(self.dir.path()));
    }
}
