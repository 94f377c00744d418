//! A Kiln of one round: its processes, the lines between them, its disks and its clocks. All of it goes when this does.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use kiln_sdk::{
    Client, Options, Policy,
    v1::{AgentState, CreateTokenRequest, ListAgentsRequest, Role},
};
use rustix::process::Signal;
use tempfile::TempDir;

use super::{
    blow::{Blow, Line, Who},
    fault::{Database, Fault, Outage, Plot},
    postgres::Postgres,
    process::{Process, left_in, said, signal_all, until},
    proxy::Proxy,
    random::Random,
};

/// A start on a machine that does much else.
const START: Duration = Duration::from_mins(3);
const STOP: Duration = Duration::from_mins(1);
const HEARTBEAT: Duration = Duration::from_secs(1);
const SWEEP: Duration = Duration::from_millis(500);
/// Room for what a Kiln keeps, and for little else.
const DISK: &str = "48m";

/// The library that gives a process a clock of its own, where Debian puts it.
fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let library = |entry: std::fs::DirEntry| entry.path().join("faketime/libfaketime.so.1");
    folders.map(library).find(|path| path.exists())
}

/// Why this machine can't strike so; nothing: it can.
pub fn missing(fault: &Fault, database: Database) -> Option<&'static str> {
    if database == Database::Postgres && super::postgres::binaries().is_none() {
        return Some("Postgres is not installed");
    }
    if fault.strikes(|blow| matches!(blow, Blow::Jump(..))) && faketime().is_none() {
        return Some("libfaketime is not installed");
    }
    let root = rustix::process::geteuid().is_root();
    let disk = fault.strikes(|blow| matches!(blow, Blow::Fill(_)));
    (disk && !root).then_some("only root can mount a small disk")
}

#[derive(Debug)]
struct Server {
    port: u16,
    process: Option<Process>,
}

#[derive(Debug)]
struct Agent {
    name: String,
    /// Where it finds the server.
    port: u16,
    process: Option<Process>,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) fault: Fault,
    pub(super) random: Random,
    pub(super) grace: Duration,
    database: String,
    postgres: Option<Postgres>,
    server: Server,
    agents: Vec<Agent>,
    lines: BTreeMap<&'static str, Proxy>,
    bin: PathBuf,
    mounts: Vec<PathBuf>,
    dir: TempDir,
}

impl World {
    /// A server and an agent that is on line.
    pub(super) async fn start(
        bin: &Path,
        fault: Fault,
        database: Database,
        seed: u64,
    ) -> Result<Self> {
        // Short: paths of sockets below it must fit into 107 bytes.
        let dir = tempfile::Builder::new().prefix("kiln-c.").tempdir_in("/tmp")?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), mode)?;
        let grace = match (fault.plot, fault.outage) {
            (Plot::Survives | Plot::Cancelled, Outage::Short) => Duration::from_mins(2),
            // An agent that waits to connect again must come back within it.
            (Plot::Survives | Plot::Cancelled, Outage::PastGrace) => Duration::from_secs(15),
            _ => Duration::from_secs(8),
        };
        let port = free_port()?;
        let server = Server { port, process: None };
        let mut world = Self {
            fault,
            random: Random::new(seed),
            grace,
            database: format!("sqlite:{}", dir.path().join("server/kiln.db").display()),
            postgres: None,
            server,
            agents: vec![],
            lines: BTreeMap::new(),
            bin: bin.to_owned(),
            mounts: vec![],
            dir,
        };
        world.build(database).await?;
        Ok(world)
    }

    async fn build(&mut self, database: Database) -> Result<()> {
        let fault = self.fault;
        for who in [Who::Server, Who::Agent] {
            if fault.strikes(|blow| *blow == Blow::Fill(who)) {
                self.mount(&self.home(who))?;
            }
        }
        if database == Database::Postgres {
            let postgres = Postgres::create(self.dir.path(), free_port()?).await?;
            let mut port = postgres.port;
            if fault.strikes(|blow| matches!(blow, Blow::Cut(Line::Database, _))) {
                port = self.lay(Line::Database, port)?;
            }
            self.database = Postgres::url(port);
            self.postgres = Some(postgres);
        }
        let millis = |time: Duration| time.as_millis();
        let config = format!(
            "heartbeat_ms = {}\ngrace_ms = {}\nsweep_ms = {}\n",
            millis(HEARTBEAT),
            millis(self.grace),
            millis(SWEEP)
        );
        std::fs::write(self.path("server.toml"), config)?;
        for who in [Who::Server, Who::Agent] {
            self.set_clock(who, 0)?;
        }
        self.start_server().await?;
        let mut port = self.server.port;
        if fault.strikes(|blow| matches!(blow, Blow::Cut(Line::Agent, _))) {
            port = self.lay(Line::Agent, port)?;
        }
        self.add_agent(port).await
    }

    fn lay(&mut self, line: Line, to: u16) -> Result<u16> {
        let port = free_port()?;
        self.lines.insert(name_of(line), Proxy::start(port, to)?);
        Ok(port)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where it keeps its data.
    fn home(&self, who: Who) -> PathBuf {
        match who {
            Who::Server => self.path("server"),
            Who::Agent => self.path("agent-0"),
            Who::Postgres => self.path("pg"),
        }
    }

    pub(super) fn filler(&self, who: Who) -> PathBuf {
        self.home(who).join("filler")
    }

    fn mount(&mut self, at: &Path) -> Result<()> {
        std::fs::create_dir(at)?;
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", &format!("size={DISK}"), "none"]).arg(at);
        let output = mount.output()?;
        ensure!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
        self.mounts.push(at.to_owned());
        Ok(())
    }

    fn clock_of(&self, who: Who) -> PathBuf {
        self.path(if who == Who::Server { "clock-server" } else { "clock-agent" })
    }

    /// What its clock of the day shows more than the machine's.
    pub(super) fn set_clock(&self, who: Who, seconds: i64) -> Result<()> {
        Ok(std::fs::write(self.clock_of(who), format!("{seconds:+}\n"))?)
    }

    /// The product's command line, with a clock of its own where the fault is one.
    fn command(&self, who: Who, args: &[&str]) -> Command {
        let mut command = Command::new(&self.bin);
        command.args(args).current_dir(self.dir.path());
        command.env("XDG_CONFIG_HOME", self.path("config")).env("NO_COLOR", "1");
        command.env("KILN_LOG_FILTER", "info,kiln_server=debug,kiln_agent=debug");
        command.env_remove("KILN_TOKEN").env("DOCKER_HOST", "unix:///nowhere");
        if self.fault.strikes(|blow| matches!(blow, Blow::Jump(of, _) if *of == who))
            && let Some(library) = faketime()
        {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", self.clock_of(who));
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            // It would outlive a process that is killed.
            command.env("FAKETIME_DISABLE_SHM", "1");
        }
        command
    }

    pub(super) async fn start_server(&mut self) -> Result<()> {
        let mut command = self.command(Who::Server, &["server"]);
        command.arg("--listen").arg(format!("127.0.0.1:{}", self.server.port));
        command.arg("--database").arg(&self.database).arg("--data").arg(self.home(Who::Server));
        command.arg("--config").arg(self.path("server.toml"));
        self.server.process = Some(Process::start("server", self.dir.path(), &mut command)?);
        let token = self.home(Who::Server).join("admin.token");
        until("the server's start", START, async || {
            self.server_process()?.must_run()?;
            if !token.exists() {
                return Ok(None);
            }
            let client = self.client(Policy { attempts: 1, ..Policy::CALL })?;
            Ok(client.list_agents(ListAgentsRequest {}).await.is_ok().then_some(()))
        })
        .await
    }

    pub(super) fn server_process(&mut self) -> Result<&mut Process> {
        self.server.process.as_mut().context("there is no server")
    }

    /// One more agent, which is waited for.
    async fn add_agent(&mut self, port: u16) -> Result<()> {
        let at = self.agents.len();
        let name = format!("agent-{at}");
        let client = self.client(Policy::STREAM)?;
        let request = CreateTokenRequest {
            name: name.clone(),
            role: Role::Enroller.into(),
            ..CreateTokenRequest::default()
        };
        let made = client.create_token(request).await?;
        std::fs::write(self.path(&format!("{name}.token")), made.secret)?;
        self.agents.push(Agent { name: name.clone(), port, process: None });
        self.start_agent(at)?;
        until("the agent on line", START, async || {
            self.agent_process(at)?.must_run()?;
            let Ok(list) = client.list_agents(ListAgentsRequest {}).await else { return Ok(None) };
            let up = |agent: &kiln_sdk::v1::Agent| {
                agent.name == name && agent.state() == AgentState::Online
            };
            Ok(list.agents.iter().any(up).then_some(()))
        })
        .await
    }

    /// An agent beside the one that is struck.
    pub(super) async fn add_other_agent(&mut self) -> Result<()> {
        self.add_agent(self.server.port).await
    }

    pub(super) fn start_agent(&mut self, at: usize) -> Result<()> {
        let agent = self.agents.get(at).context("no such agent")?;
        let (name, port) = (agent.name.clone(), agent.port);
        let mut command = self.command(Who::Agent, &["agent", "--name", &name]);
        command.env("KILN_SERVER", format!("http://127.0.0.1:{port}"));
        command.arg("--enroll-token-file").arg(self.path(&format!("{name}.token")));
        command.arg("--data").arg(self.path(&name));
        let process = Process::start(&name, self.dir.path(), &mut command)?;
        self.agents[at].process = Some(process);
        Ok(())
    }

    pub(super) fn agent_process(&mut self, at: usize) -> Result<&mut Process> {
        let agent = self.agents.get_mut(at).context("no such agent")?;
        agent.process.as_mut().context("the agent does not run")
    }

    pub(super) fn postgres(&mut self) -> Result<&mut Postgres> {
        self.postgres.as_mut().context("there is no Postgres")
    }

    pub(super) fn line(&self, line: Line) -> Result<&Proxy> {
        self.lines.get(name_of(line)).context("there is no such line")
    }

    pub(super) fn signal(&mut self, who: Who, signal: Signal) -> Result<()> {
        match who {
            Who::Server => self.server_process()?.signal(signal),
            Who::Agent => self.agent_process(0)?.signal(signal),
            Who::Postgres => self.postgres()?.signal(signal),
        }
    }

    /// An administrator at the server's own door.
    pub(super) fn client(&self, retry: Policy) -> Result<Client> {
        self.client_at(self.server.port, retry)
    }

    /// Somebody beyond the network that the fault cuts, where it does.
    pub(super) fn remote_client(&self) -> Result<Client> {
        let port = self.lines.get(name_of(Line::Agent)).map_or(self.server.port, |line| line.port);
        self.client_at(port, Policy::STREAM)
    }

    fn client_at(&self, port: u16, retry: Policy) -> Result<Client> {
        let token = std::fs::read_to_string(self.home(Who::Server).join("admin.token"))?;
        let options = Options::new(format!("http://127.0.0.1:{port}")).retry(retry);
        Ok(Client::lazy(options.token(token.trim()))?)
    }

    /// Ends everything politely: nothing of any job may be left.
    pub(super) async fn finish(&mut self) -> Result<()> {
        for at in 0..self.agents.len() {
            let leases = self.path(&format!("agent-{at}/leases"));
            until("the agents' forgetting of their leases", START, async || {
                let left = std::fs::read_dir(&leases)?.count();
                Ok((left == 0).then_some(()))
            })
            .await?;
            let status = self.agent_process(at)?.end_by(Signal::TERM, STOP).await?;
            ensure!(status.success(), "agent-{at} ended with {status}");
        }
        let status = self.server_process()?.end_by(Signal::TERM, STOP).await?;
        ensure!(status.success(), "the server ended with {status}");
        if let Some(postgres) = &mut self.postgres {
            postgres.stop().await?;
        }
        let left = left_in(self.dir.path());
        if left.is_empty() { Ok(()) } else { bail!("left behind: {left:?}") }
    }

    /// What the processes said, for whoever looks for the reason of a failure.
    pub(super) fn keep_words(&self, into: &Path) -> Result<()> {
        std::fs::create_dir_all(into)?;
        for name in ["server", "agent-0", "agent-1", "postgres"] {
            let from = said(self.dir.path(), name);
            if from.exists() {
                std::fs::copy(&from, into.join(format!("{name}.err")))?;
            }
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.agents.clear();
        self.server.process = None;
        self.postgres = None;
        // Supervisors and their jobs outlive agents: that is what they are for.
        let left: Vec<_> = left_in(self.dir.path()).into_iter().map(|(pid, _)| pid).collect();
        signal_all(&left, Signal::KILL);
        for mount in &self.mounts {
            let _nothing_more_to_do = Command::new("umount").arg("--lazy").arg(mount).status();
        }
    }
}

const fn name_of(line: Line) -> &'static str {
    match line {
        Line::Agent => "agent",
        Line::Database => "database",
    }
}

/// Below the ports that the system gives to connections, so that a server finds its own free after its restart.
fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 8_000).unwrap_or(0);
    for _ in 0..1_000 {
        let port = 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between 20000 and 32000")
}
