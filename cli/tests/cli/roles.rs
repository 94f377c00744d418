//! A server and an agent as processes of their own, and what an administrator does to them.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longer than anything here takes, on a machine that is busy.
const LIMIT: Duration = Duration::from_mins(1);

/// A process that ends with the test.
pub(crate) struct Role(Child);

impl Role {
    pub(crate) fn ask_to_end(&self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
    }

    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.0), Signal::INT).unwrap();
    }

    pub(crate) fn ends(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _gone_already = self.0.wait();
    }
}

pub(crate) struct Farm {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) url: String,
    pub(crate) server: Option<Role>,
}

impl Farm {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut farm = Self { folder, url: "http://127.0.0.1:1".to_owned(), server: None };
        farm.serve(&["--listen", "127.0.0.1:0"]);
        farm
    }

    pub(crate) fn serve(&mut self, args: &[&str]) {
        let mut command = self.kiln(&[&["server"], args].concat());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let told = BufReader::new(child.stderr.take().unwrap());
        self.server = Some(Role(child));
        // It is read no further: a server goes on when nobody reads what it logs.
        let mut lines = told.lines().map(Result::unwrap);
        let line = lines.find_map(|line| {
            assert!(!line.contains('\u{1b}'), "colours where there is no terminal: {line:?}");
            line.strip_prefix("listening on ").map(str::to_owned)
        });
        self.url = line.unwrap();
    }

    pub(crate) fn kiln(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(args).current_dir(self.folder.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.folder.path()).env("KILN_SERVER", &self.url);
        command.env("KILN_DATA", self.folder.path().join("data"));
        command
    }

    /// Exit code, standard output and standard error.
    pub(crate) fn told(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.kiln(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.told(args);
        assert_eq!(code, 0, "{args:?}: {err}");
        out
    }

    /// Exit code 2, and what is said.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let (code, out, err) = self.told(args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        err
    }

    fn token(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, self.ok(&["token", "create", name, "--role", "enroller"])).unwrap();
        path
    }

    /// Enrolled by the verb, then run without a token.
    pub(crate) fn agent(&self) -> Role {
        let token = self.token("builder");
        let token = token.to_str().unwrap();
        let enroll = ["agent", "enroll", "--name", "builder", "--enroll-token-file", token];
        assert!(self.ok(&enroll).starts_with("agt_"));
        self.start_agent()
    }

    pub(crate) fn start_agent(&self) -> Role {
        let mut command = self.kiln(&["agent", "--label", "disk=ssd"]);
        let role = Role(command.stderr(Stdio::null()).spawn().unwrap());
        self.until("the agent is online", |farm| farm.agent_is("online"));
        role
    }

    fn agent_is(&self, state: &str) -> bool {
        let all: Value =
            serde_json::from_str(&self.ok(&["--output", "json", "agents", "list"])).unwrap();
        all["agents"][0]["state"] == state
    }

    pub(crate) fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is(self) {
            assert!(began.elapsed() < LIMIT, "never: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn run(&self, script: &str) -> (i32, String) {
        let (code, out, _) = self.told(&["run", "--no-source", "--", "sh", "-c", script]);
        (code, out)
    }

    pub(crate) fn detached(&self, script: &str) -> String {
        let id = self.ok(&["run", "--no-source", "--detach", "--", "sh", "-c", script]);
        id.trim().to_owned()
    }
}

#[test]
fn a_farm_from_the_first_token_to_the_last_agent() {
    let farm = Farm::new();
    let mut agent = farm.agent();
    assert_eq!(farm.run("echo $KILN_JOB; exit 5"), (5, "run\n".to_owned()));
    let shown = farm.ok(&["agents", "show", "builder"]);
    assert!(shown.contains("labels   disk=ssd") && shown.contains("\nshell    ×"), "{shown}");

    assert_eq!(farm.run("kill -TERM $$").0, 128 + 15, "as in a shell");
    let failed = farm.ok(&["show", "last"]);
    assert!(failed.contains("exit code 143 (SIGTERM)"), "{failed}");
    let told = farm.refused(&["logs", "last", "--stream", "nope"]);
    assert!(told.contains("no stream \"nope\"") && told.contains("its streams: main"), "{told}");
    assert_eq!(farm.told(&["logs", "-f", "last", "--stream", "nope"]).0, 2);
    assert!(farm.ok(&["token", "list"]).contains("used"), "an enroller's works once");
    assert!(farm.ok(&["token", "revoke", "builder"]).starts_with("tok_"));
    assert!(farm.refused(&["token", "revoke", "builder"]).contains("kiln token list"));

    farm.ok(&["agents", "pause", "builder", "--note", "disk swap", "--for", "1h"]);
    farm.detached("true");
    let why = farm.ok(&["explain"]);
    assert!(why.contains("agent builder fits: is paused: disk swap"), "{why}");
    farm.ok(&["agents", "resume", "builder"]);
    farm.ok(&["watch", "last"]);

    farm.ok(&["agents", "drain", "builder"]);
    assert_eq!(agent.ends(), Some(0), "a drained agent leaves");
    farm.ok(&["agents", "resume", "builder"]);
    let mut agent = farm.start_agent();

    let go = farm.folder.path().join("go");
    let wait = format!("until [ -e {} ]; do sleep 0.05; done", go.display());
    let build = farm.detached(&format!("trap '{wait}; exit' TERM; while :; do sleep 0.1; done"));
    farm.until("it runs", |farm| farm.ok(&["show", &build]).contains("running"));
    farm.ok(&["cancel", &build, "--reason", "wrong branch"]);
    let why = farm.ok(&["explain", &build]);
    assert!(why.contains("cancelled: wrong branch (CANCELLING)"), "{why}");
    std::fs::write(go, "").unwrap();
    assert_eq!(farm.told(&["watch", &build]).0, 3);

    let build = farm.detached("trap 'touch ended; exit' TERM; while :; do sleep 0.1; done");
    farm.until("it runs", |farm| farm.ok(&["show", &build]).contains("running"));
    let evicted = farm.ok(&["agents", "evict", "builder"]);
    assert_eq!(evicted, "agent builder removed, 1 job lost\n");
    assert_eq!(agent.ends(), Some(5), "it ends its job and leaves: the job may run elsewhere");
    assert!(farm.ok(&["explain", &build]).starts_with("job run queued: "));
    assert!(farm.refused(&["agents", "evict", "builder"]).contains("kiln agents list"));
}

#[test]
fn an_agent_that_was_evicted_while_it_was_away_ends_its_jobs_and_says_so() {
    let farm = Farm::new();
    let agent = farm.agent();
    let (pid, ended) = (farm.folder.path().join("pid"), farm.folder.path().join("ended"));
    let script = format!(
        "trap 'touch {}; exit' TERM; echo $$ > {}; while :; do sleep 0.05; done",
        ended.display(),
        pid.display()
    );
    let build = farm.detached(&script);
    farm.until("it runs", |farm| pid.exists() && farm.ok(&["show", &build]).contains("running"));
    drop(agent);
    assert_eq!(farm.ok(&["agents", "evict", "builder"]), "agent builder removed, 1 job lost\n");
    assert!(!ended.exists(), "a job outlives its agent");

    let (code, _, err) = farm.told(&["agent"]);
    assert_eq!(code, 5, "{err}");
    assert!(err.contains("error: the server evicted this agent: its jobs were ended"), "{err}");
    assert!(err.contains("identity.json") && err.contains("kiln token create NAME"), "{err}");
    assert!(ended.exists(), "its job was ended before it left");
    assert_eq!(farm.told(&["agent"]).0, 5, "and again");

    std::fs::remove_file(farm.folder.path().join("data/agent/identity.json")).unwrap();
    let token = farm.token("again");
    let mut command = farm.kiln(&["agent", "--name", "builder", "--enroll-token-file"]);
    let _agent = Role(command.arg(token).stderr(Stdio::null()).spawn().unwrap());
    farm.until("it is tried again", |farm| farm.ok(&["show", &build]).contains("running"));
    farm.ok(&["cancel", &build]);
    assert_eq!(farm.told(&["watch", &build]).0, 3, "nothing is left running");
}

#[test]
fn the_second_interrupt_leaves_a_build_that_is_being_cancelled() {
    let farm = Farm::new();
    let _agent = farm.agent();
    let go = farm.folder.path().join("go");
    let wait = format!("until [ -e {} ]; do sleep 0.05; done", go.display());
    let script = format!("trap '{wait}; exit' TERM; echo begun; while :; do sleep 0.1; done");
    let mut command = farm.kiln(&["run", "--no-source", "--", "sh", "-c", &script]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut run = Role(child);
    assert_eq!(out.next().unwrap(), "begun");
    run.interrupt();
    err.find(|line| line.contains("cancelling the build")).unwrap();
    farm.until("it is cancelled", |farm| farm.ok(&["show", "last"]).contains("cancelling"));
    run.interrupt();
    assert_eq!(run.ends(), Some(3));
    let left = err.find(|line| line.contains("left; `kiln watch bld_")).unwrap();
    assert!(farm.ok(&["show", "last"]).contains("running, cancelling"), "{left}");
    std::fs::write(go, "").unwrap();
    assert_eq!(farm.told(&["watch", "last"]).0, 3);
}

#[test]
fn artifacts_come_into_the_folder_that_is_named() {
    let farm = Farm::new();
    let _agent = farm.agent();
    let keep = ["run", "--no-source", "--artifact", "out/*", "--", "sh", "-c"];
    farm.ok(
        &[&keep[..], &["mkdir out; echo one > out/a; echo two > out/b; chmod +x out/b"]].concat()
    );
    let read = |path: &str| std::fs::read_to_string(farm.folder.path().join(path)).unwrap();
    farm.ok(&["artifacts", "get", "last", "--to", "all"]);
    assert_eq!((read("all/out/a"), read("all/out/b")), ("one\n".into(), "two\n".into()));
    farm.ok(&["artifacts", "get", "last", "out/a", "--to", "new/"]);
    farm.ok(&["artifacts", "get", "last", "out/b", "--to", "file"]);
    assert_eq!((read("new/a"), read("file")), ("one\n".into(), "two\n".into()));
    assert!(farm.refused(&["artifacts", "get", "last", "none"]).contains("kiln artifacts list"));
}

#[test]
fn a_copy_of_an_agent_is_refused_and_disturbs_nothing() {
    let farm = Farm::new();
    let _agent = farm.agent();
    let go = farm.folder.path().join("go");
    let script = format!("echo one; until [ -e {} ]; do sleep 0.05; done; echo two", go.display());
    let build = farm.detached(&script);
    farm.until("it runs", |farm| farm.ok(&["logs", &build]).contains("one"));
    let data = farm.folder.path().join("data");
    let copied =
        Command::new("cp").arg("-a").args([data.join("agent"), data.join("copy")]).status();
    // What comes and goes beside them meanwhile does not matter.
    copied.unwrap();
    for file in ["identity.json", "home", "journal"] {
        assert!(data.join("copy").join(file).exists(), "{file}");
    }
    // Its counter of Hellos is ahead of the original's.
    std::fs::write(data.join("copy/epoch"), "1000").unwrap();

    let args = ["agent", "--data", "data/copy"];
    let mut copy = farm.kiln(&args).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(copy.stderr.take().unwrap()).lines().map(Result::unwrap);
    let _copy = Role(copy);
    let refused = { lines }.find(|line| line.contains("refuses this agent's session")).unwrap();
    assert!(refused.contains("connected from another machine or data folder"), "{refused}");

    std::fs::write(go, "").unwrap();
    farm.ok(&["watch", &build]);
    assert_eq!(farm.ok(&["logs", &build]), "one\ntwo\n");
    let shown = farm.ok(&["--output", "json", "show", &build]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&shown["jobs"][0]["attempt"], &shown["jobs"][0]["state"]),
        (&1.into(), &"succeeded".into())
    );
}

#[test]
fn a_job_outlives_its_agent_and_its_server() {
    let mut farm = Farm::new();
    let agent = farm.agent();
    let go = farm.folder.path().join("go");
    let script =
        format!("echo one; until [ -e {} ]; do sleep 0.05; done; echo two; exit 6", go.display());
    let build = farm.detached(&script);
    farm.until("it runs", |farm| farm.ok(&["logs", &build]).contains("one"));
    drop(agent);
    drop(farm.server.take());
    std::fs::write(go, "").unwrap();
    let listen = farm.url.trim_start_matches("http://").to_owned();
    farm.serve(&["--listen", &listen]);
    let agent = farm.start_agent();
    let (code, out, err) = farm.told(&["watch", &build]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("job run failed: exit code 6"), "{err}");
    assert_eq!(farm.ok(&["logs", "-f", &build]), "one\ntwo\n");
    assert_eq!(farm.ok(&["logs", "-f", &build, "--offset", "4"]), "two\n");
    agent.ask_to_end();
    let server = farm.server.as_mut().unwrap();
    server.ask_to_end();
    assert_eq!(server.ends(), Some(0));
}

#[test]
fn what_a_role_refuses_is_said_with_its_cause() {
    let farm = Farm::new();
    let token = farm.token("once");
    let enroll = |data: &str, name: &str| {
        let token = token.to_str().unwrap();
        let args = ["agent", "enroll", "--name", name, "--enroll-token-file", token, "--data"];
        farm.told(&[&args[..], &[data]].concat())
    };
    assert_eq!(enroll("a", "a").0, 0);
    let (code, _, err) = enroll("b", "b");
    assert!(code == 2 && err.contains("the token was used before"), "{code} {err}");
    assert!(farm.refused(&["agent", "--data", "c"]).contains("kiln token create NAME --role"));

    assert!(
        farm.refused(&["server", "--database", "mysql://h/k"])
            .contains("  database (--database): must be")
    );
    std::fs::write(farm.folder.path().join("s.toml"), "grace_ms = 5\n").unwrap();
    assert!(
        farm.refused(&["server", "--config", "s.toml"]).contains("  grace_ms (s.toml:1): must be")
    );
    let (code, _, err) = farm.told(&["server", "--listen", "127.0.0.1:0"]);
    assert!(code == 4 && err.contains("is used by another server"), "{code} {err}");
}

#[test]
fn migrate_makes_the_database_and_finds_it_made() {
    let farm = Farm::new();
    for _ in 0..2 {
        let (code, _, err) = farm.told(&["migrate", "--data", "fresh"]);
        assert_eq!((code, err.as_str()), (0, "the database is up to date\n"));
    }
    assert!(farm.folder.path().join("fresh/kiln.db").is_file());
}

#[test]
fn a_configuration_is_checked_and_shown_without_its_secrets() {
    let farm = Farm::new();
    let write = |name: &str, text: &str| {
        std::fs::write(farm.folder.path().join(name), text).unwrap();
    };
    write("s.toml", "[limits]\nstreams = 7\n[agent.labels]\nrack = \"3\"\n");
    let check = |args: &[&str]| {
        let mut command = farm.kiln(args);
        command.env("KILN_DATABASE", "postgres://kiln:hush@db/k?password=hush");
        command.env("KILN_SECRETS_KEY", "hush").env("KILN_AGENT_SOURCE_BYTES", "4096");
        let output = command.arg("--check-config").output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains("hush"), "{text}");
        (output.status.code().unwrap(), text)
    };
    let (code, text) = check(&["up", "--config", "s.toml", "--listen", "127.0.0.1:9"]);
    assert_eq!(code, 0, "{text}");
    for line in [
        "listen = \"127.0.0.1:9\" # --listen",
        "database = \"postgres://kiln:…@db/k?password=…\" # KILN_DATABASE",
        "[limits]",
        "streams = 7 # s.toml:2",
        "key = \"…\" # KILN_SECRETS_KEY",
        "[agent]",
        "source_bytes = 4096 # KILN_AGENT_SOURCE_BYTES",
        "rack = \"3\" # s.toml:4",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line:?} in {text}");
    }
    let (code, text) = check(&["server", "--config", "s.toml", "--listen", "here"]);
    assert!(code == 2 && text.contains("  agent.labels.rack (s.toml:4): is not known"), "{text}");
    assert!(text.contains("  listen (--listen): "), "{text}");
    let (code, text) = check(&["agent", "--label", "disk=ssd"]);
    assert!(code == 0 && text.contains("disk = \"ssd\" # --label"), "{text}");
    write("a.toml", "data = \"\"\nserver = \"nowhere\"\n");
    let (code, text) = check(&["agent", "--config", "a.toml"]);
    assert!(code == 2 && text.contains("  data (a.toml:1): must name a folder"), "{text}");
    assert!(!text.contains("a.toml:2"), "KILN_SERVER stands above it: {text}");
    let fresh = farm.folder.path().join("data/agent");
    assert!(!fresh.exists(), "nothing is started");
}

/// A server whose log is read.
struct Logged {
    role: Role,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Logged {
    fn start(farm: &Farm, args: &[&str]) -> Self {
        let mut command = farm.kiln(&[&["server", "--data", "logged"], args].concat());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { role: Role(child), lines }
    }

    /// The next line with this in it.
    fn line(&mut self, part: &str) -> String {
        let found = self.lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(part)));
        found.unwrap_or_else(|| panic!("no line with {part:?}")).unwrap()
    }

    fn hang_up(&self) {
        kill_process(Pid::from_child(&self.role.0), Signal::HUP).unwrap();
    }
}

/// Whether a hundred calls at once are more than the server takes of one token. A client of the product would wait.
fn is_too_much(url: &str, secret: &str) -> bool {
    use kiln_proto::v1::{ListBuildsRequest, build_service_client::BuildServiceClient};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut builds = BuildServiceClient::connect(url.to_owned()).await.unwrap();
        for _ in 0..100 {
            let mut request = tonic::Request::new(ListBuildsRequest::default());
            let bearer = format!("Bearer {}", secret.trim()).parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
            match builds.list_builds(request).await {
                Ok(_) => {}
                Err(status) if status.code() == tonic::Code::ResourceExhausted => return true,
                Err(status) => panic!("{status}"),
            }
        }
        false
    })
}

#[test]
fn a_hangup_takes_over_what_can_be_names_the_rest_and_keeps_what_is_right() {
    let mut farm = Farm::new();
    let path = farm.folder.path().join("s.toml");
    let write =
        |text: &str| std::fs::write(&path, format!("listen = \"127.0.0.1:0\"\n{text}")).unwrap();
    write("sweep_ms = 5000\n");
    let mut server = Logged::start(&farm, &["--config", "s.toml"]);
    let line = server.line("listening on http");
    farm.url = line.trim_start_matches("listening on ").to_owned();
    let secret = std::fs::read_to_string(farm.folder.path().join("logged/admin.token")).unwrap();
    assert!(!is_too_much(&farm.url, &secret));

    write("sweep_ms = 7\ngrace_ms = 50000\n[limits]\ncalls_per_second = 1\ncalls_burst = 1\n");
    server.hang_up();
    let line = server.line("need a restart");
    assert!(line.contains("grace_ms, sweep_ms") && !line.contains("limits"), "{line}");
    assert!(is_too_much(&farm.url, &secret));

    write("grace_ms = 5\n[limits]\nstreems = 5\n");
    server.hang_up();
    let line = server.line("stays as it is");
    assert!(line.contains("s.toml:2") && line.contains("s.toml:4"), "{line}");
    assert!(is_too_much(&farm.url, &secret), "the limits are those of before");

    write("[log]\nfilter = \"warn,kiln_server::grpc::call=debug\"\n");
    server.hang_up();
    farm.until("the limits are as they were", |farm| !is_too_much(&farm.url, &secret));
    let line = server.line("a call was answered");
    assert!(line.contains("kiln.v1.BuildService/ListBuilds"), "{line}");
    server.role.ask_to_end();
    assert_eq!(server.role.ends(), Some(0));
}

#[test]
fn a_log_for_machines_has_a_document_a_line_and_the_id_of_each_call() {
    let mut farm = Farm::new();
    let toml = "[log]\nfilter = \"warn,[call{method=kiln.v1.BuildService/ListBuilds}]=debug\"\n";
    std::fs::write(farm.folder.path().join("s.toml"), toml).unwrap();
    let args = ["--config", "s.toml", "--listen", "127.0.0.1:0", "--log-format", "json"];
    let mut server = Logged::start(&farm, &args);
    let line = server.line("listening on http");
    farm.url = line.trim_start_matches("listening on ").to_owned();
    let token = farm.folder.path().join("logged/admin.token");
    farm.ok(&["--token-file", token.to_str().unwrap(), "agents", "list"]);
    farm.ok(&["--token-file", token.to_str().unwrap(), "list"]);
    let line = server.line("a call was answered");
    let said: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&said["level"], &said["code"]), (&"DEBUG".into(), &"Ok".into()), "{line}");
    let call = &said["span"];
    assert_eq!(call["method"], "kiln.v1.BuildService/ListBuilds");
    assert_eq!(call["caller"], "admin");
    assert_eq!(call["request_id"].as_str().unwrap().len(), 32);
    let secret = std::fs::read_to_string(token).unwrap();
    assert!(!line.contains(secret.trim()));
    server.role.ask_to_end();
    assert!(server.lines.map(Result::unwrap).all(|line| !line.contains(secret.trim())));
}
