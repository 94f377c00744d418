//! One Kiln of a test's own: a server and an agent as processes, a database, and the command line to talk to them.
//! It knows the command line and its JSON; tests know build files and outcomes.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use kiln_tests::chaos::left_in;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Process, until};

pub(crate) const START: Duration = Duration::from_mins(1);
pub(crate) const BUILD: Duration = Duration::from_secs(150);
const STOP: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Database {
    Sqlite,
    Postgres,
}

/// Makes a test of each named function on each database.
macro_rules! on_both_databases {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[test] fn $name() { crate::harness::with(crate::harness::Database::Sqlite, super::$name); })*
        }
        mod postgres {
            $(#[test] fn $name() { crate::harness::with(crate::harness::Database::Postgres, super::$name); })*
        }
    };
}
pub(crate) use on_both_databases;

/// Runs a test on a Kiln of its own, and checks that it leaves nothing behind.
pub(crate) fn with(database: Database, test: fn(&mut Kiln)) {
    let wanted = ["KILN_TEST_POSTGRES", "KILN_TEST_DOCKER", "KILN_TEST_IMAGE"];
    if let Some(missing) = wanted.into_iter().find(|name| variable(name).is_none()) {
        assert!(variable("KILN_TEST_REQUIRE").as_deref() != Some("1"), "{missing} is not set");
        println!("skipped: {missing} is not set");
        return;
    }
    let mut kiln = Kiln::start(database);
    test(&mut kiln);
    kiln.finish();
}

pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

pub(crate) fn binary() -> PathBuf {
    if let Some(named) = variable("KILN_BIN") {
        return named.into();
    }
    // target/debug/deps/rig_real-… has target/debug/kiln two steps up.
    let built = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("kiln");
    assert!(built.exists(), "{} is not there: cargo build -p kiln", built.display());
    built
}

#[derive(Debug)]
pub(crate) struct Kiln {
    dir: TempDir,
    bin: PathBuf,
    database: String,
    port: u16,
    pub(crate) server: Option<Process>,
    pub(crate) agent: Option<Process>,
    builds: Vec<String>,
    /// What the processes log; empty: what they do by themselves.
    pub(crate) log: &'static str,
    /// KILN_SECRETS_KEY of the server.
    pub(crate) secrets_key: String,
}

impl Kiln {
    pub(crate) fn start(database: Database) -> Self {
        // Short: paths of sockets below it must fit into 107 bytes.
        let dir = tempfile::Builder::new().prefix("kiln-t.").tempdir_in("/tmp").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let database = match database {
            Database::Sqlite => format!("sqlite:{}", dir.path().join("kiln.db").display()),
            Database::Postgres => postgres::create(&name_of(dir.path())),
        };
        let mut kiln = Self {
            dir,
            bin: binary(),
            database,
            port,
            server: None,
            agent: None,
            builds: vec![],
            log: "",
            secrets_key: String::new(),
        };
        kiln.start_server();
        kiln.enrol();
        kiln.start_agent();
        kiln
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn start_server(&mut self) {
        let mut command = self.command(&["server"]);
        command.arg("--listen").arg(format!("127.0.0.1:{}", self.port));
        command.arg("--database").arg(&self.database).arg("--data").arg(self.path("server"));
        self.server = Some(Process::start("server", self.dir.path(), &mut command));
        until("an answer of the server", START, || {
            let ended = self.server.as_mut().and_then(Process::ended);
            assert!(ended.is_none(), "the server ended: {ended:?}");
            self.try_cli(&["list"]).status.success().then_some(())
        });
    }

    /// A token that works once, kept in a file: never in argv.
    fn enrol(&self) {
        let made = self.json(&["token", "create", "rig", "--role", "enroller"]);
        std::fs::write(self.path("enrol"), made["secret"].as_str().unwrap()).unwrap();
    }

    pub(crate) fn start_agent(&mut self) {
        let mut command = self.command(&["agent", "--name", "rig"]);
        command
            .arg("--enroll-token-file")
            .arg(self.path("enrol"))
            .arg("--data")
            .arg(self.path("agent"));
        self.agent = Some(Process::start("agent", self.dir.path(), &mut command));
        until("the agent on line", START, || {
            let agents = self.json(&["agents", "list"]);
            let up = |agent: &Value| agent["state"] == "online";
            agents["agents"].as_array()?.iter().any(up).then_some(())
        });
    }

    pub(crate) fn kill_server(&mut self) {
        self.server.as_mut().unwrap().kill();
    }

    pub(crate) fn kill_agent(&mut self) {
        self.agent.as_mut().unwrap().kill();
    }

    /// The command line as a person on this machine has it.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.bin);
        command.args(args).current_dir(self.dir.path());
        command.env("KILN_SERVER", format!("http://127.0.0.1:{}", self.port));
        command.env("XDG_CONFIG_HOME", self.path("config")).env("NO_COLOR", "1");
        command.env("DOCKER_HOST", variable("KILN_TEST_DOCKER").unwrap_or_default());
        if !self.log.is_empty() && matches!(args[0], "server" | "agent") {
            command.env("KILN_LOG_FILTER", self.log);
        }
        if args[0] == "server" && !self.secrets_key.is_empty() {
            command.env("KILN_SECRETS_KEY", &self.secrets_key);
        }
        if let Ok(token) = std::fs::read_to_string(self.path("server/admin.token")) {
            command.env("KILN_TOKEN", token.trim());
        }
        command
    }

    pub(crate) fn try_cli(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a command prints; it must succeed.
    pub(crate) fn cli(&self, args: &[&str]) -> Vec<u8> {
        let output = self.try_cli(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kiln {}: {}: {said}", args.join(" "), output.status);
        output.stdout
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let printed = self.cli(&[args, &["--output", "json"]].concat());
        serde_json::from_slice(&printed).unwrap_or_else(|error| {
            panic!("{args:?}: {error}: {}", String::from_utf8_lossy(&printed))
        })
    }

    /// A command that goes on while the test does other things.
    pub(crate) fn background(&self, name: &str, args: &[&str]) -> Process {
        Process::start(name, self.dir.path(), &mut self.command(args))
    }

    /// Submits a build file and gives the build's id. `@IMAGE@` and `@BUSYBOX@` stand for images of the rig.
    pub(crate) fn submit(&mut self, file: &str) -> String {
        let image = variable("KILN_TEST_IMAGE").unwrap();
        let small = variable("KILN_TEST_BUSYBOX").unwrap_or_else(|| image.clone());
        let text = file.replace("@IMAGE@", &image).replace("@BUSYBOX@", &small);
        let path = self.path(&format!("build-{}.toml", self.builds.len()));
        std::fs::write(&path, format!("version = 1\n{text}")).unwrap();
        let build = self.json(&["submit", "-f", &path.display().to_string()]);
        let id = id(&build["build"]).to_owned();
        self.builds.push(id.clone());
        id
    }

    /// A build of one job, and how that job ended.
    pub(crate) fn run(&mut self, job: &str) -> (Value, Vec<u8>) {
        let build = self.submit(&format!("[[jobs]]\nname = \"only\"\n{job}\n"));
        let job = self.done(&build)["jobs"][0].clone();
        let log = self.log(id(&job));
        (job, log)
    }

    pub(crate) fn show(&self, build: &str) -> Value {
        self.json(&["show", build])
    }

    /// Waits until the build is over.
    pub(crate) fn done(&self, build: &str) -> Value {
        let over = ["succeeded", "failed", "cancelled"];
        until(&format!("the end of {build}"), BUILD, || {
            let seen = self.show(build);
            over.iter().any(|state| seen["build"]["state"] == *state).then_some(seen)
        })
    }

    /// The job of that name.
    pub(crate) fn job(&self, build: &str, name: &str) -> Value {
        let seen = self.show(build);
        let job = seen["jobs"].as_array().unwrap().iter().find(|job| job["name"] == name);
        job.unwrap_or_else(|| panic!("{build} has no job {name}: {seen:#}")).clone()
    }

    pub(crate) fn log(&self, job: &str) -> Vec<u8> {
        self.cli(&["logs", job])
    }

    /// Waits until the job's log holds as many bytes.
    pub(crate) fn log_reaches(&self, job: &str, bytes: usize) {
        until(&format!("{bytes} bytes of log"), BUILD, || {
            let output = self.try_cli(&["logs", job]);
            (output.status.success() && output.stdout.len() >= bytes).then_some(())
        });
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.database.starts_with("postgres:")
    }

    /// All rows of a Postgres as text; of SQLite nothing, as its file is below the folder.
    pub(crate) fn rows(&self) -> Vec<u8> {
        if self.is_postgres() { postgres::rows(&self.database) } else { vec![] }
    }

    /// Ends both processes politely: nothing of any build may be left on the machine.
    pub(crate) fn finish(mut self) {
        for build in &self.builds {
            let seen = self.show(build);
            for job in seen["jobs"].as_array().unwrap() {
                let Some(lease) = job["lease"].as_str() else { continue };
                until(&format!("the removal of {lease}"), STOP, || {
                    containers(lease).is_empty().then_some(())
                });
                let folder = self.path("agent/leases").join(lease);
                until(&format!("the removal of {}", folder.display()), STOP, || {
                    (!folder.exists()).then_some(())
                });
            }
        }
        for process in [self.agent.take(), self.server.take()] {
            let mut process = process.unwrap();
            let status = process.terminate(STOP);
            assert!(status.success(), "{status}: {}", process.said());
        }
        assert_eq!(left_in(self.dir.path()), []);
        if self.is_postgres() {
            postgres::drop(&name_of(self.dir.path()));
        }
    }
}

pub(crate) fn id(value: &Value) -> &str {
    value["id"].as_str().unwrap()
}

/// Containers of a lease, in whatever state.
fn containers(lease: &str) -> String {
    let label = format!("label=dev.kiln.lease={lease}");
    let output = Command::new("docker")
        .args(["ps", "-aq", "--filter", &label])
        .env("DOCKER_HOST", variable("KILN_TEST_DOCKER").unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Postgres takes names of lower-case letters without quotes.
pub(crate) fn name_of(dir: &Path) -> String {
    let name = dir.file_name().unwrap().to_string_lossy().to_lowercase();
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect::<String>()
        + "_rig"
}

pub(crate) mod postgres {
    use super::variable;

    /// Makes an empty database and gives its URL.
    pub(crate) fn create(name: &str) -> String {
        execute(&format!("CREATE DATABASE {name}"));
        let url = variable("KILN_TEST_POSTGRES").unwrap();
        let (server, _) = url.rsplit_once('/').unwrap();
        format!("{server}/{name}")
    }

    pub(crate) fn drop(name: &str) {
        execute(&format!("DROP DATABASE {name} WITH (FORCE)"));
    }

    /// All rows of all tables, as text.
    pub(super) fn rows(url: &str) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
            let driven = async { connection.await.unwrap() };
            let read = async {
                let tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'";
                let mut text = String::new();
                for table in client.query(tables, &[]).await.unwrap() {
                    let table: &str = table.get(0);
                    let rows = format!("SELECT t::text FROM \"{table}\" t");
                    for row in client.query(&rows, &[]).await.unwrap() {
                        text.push_str(row.get(0));
                        text.push('\n');
                    }
                }
                std::mem::drop(client);
                text.into_bytes()
            };
            futures::join!(driven, read).1
        })
    }

    fn execute(statement: &str) {
        let url = variable("KILN_TEST_POSTGRES").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            let driven = async { connection.await.unwrap() };
            let work = async {
                client.batch_execute(statement).await.unwrap();
                std::mem::drop(client);
            };
            futures::join!(driven, work);
        });
    }
}
