//! A server process of a test's own, its memory, and callers.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kiln_proto::v1::{
    self, admin_service_client::AdminServiceClient, agent_service_client::AgentServiceClient,
    build_service_client::BuildServiceClient, session_request::Frame,
    session_response::Frame as Said,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Streaming,
    transport::{Channel, Endpoint},
};

/// Longer than anything here takes, on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(4);
/// What an attack may cost, in KiB: a few messages of the largest size on their way, or the rows of the largest build.
const MOST_KIB: u64 = 256 << 10;

pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    pub(crate) admin: String,
    pub(crate) channel: Channel,
    /// The most that it had in memory before anyone attacked it, in KiB.
    quiet_kib: u64,
    home: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}

fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("KILN_BIN").filter(|name| !name.is_empty()) {
        return named.into();
    }
    // target/debug/deps/hostile-… has target/debug/kiln two steps up.
    let built = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("kiln");
    assert!(built.exists(), "{} is not there: cargo build -p kiln", built.display());
    built
}

impl Server {
    pub(crate) async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary());
        command.args(["server", "--listen", "127.0.0.1:0", "--data"]).arg(home.path());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let told = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let address = { told }.find_map(|line| {
            line.strip_prefix("listening on http://").map(|address| address.trim().to_owned())
        });
        let address = address.expect("the server says where it listens");
        let admin = std::fs::read_to_string(home.path().join("admin.token")).unwrap();
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = channel.connect().await.unwrap();
        let admin = admin.trim().to_owned();
        let mut server = Self { child, address, admin, channel, quiet_kib: 0, home };
        server.lives().await;
        server.quiet_kib = server.peak_kib();
        server
    }

    /// The most that the process ever had in memory.
    fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// It answers, and it never took more memory than an attack may cost.
    pub(crate) async fn is_well(&self) {
        self.lives().await;
        let cost = self.peak_kib().saturating_sub(self.quiet_kib);
        println!("the attack cost {} MiB", cost >> 10);
        assert!(cost < MOST_KIB, "the attack cost {cost} KiB of memory");
        assert!(self.home.path().join("admin.token").is_file());
    }

    async fn lives(&self) {
        let mut builds = self.builds();
        let listed = builds.list_builds(self.request(v1::ListBuildsRequest::default()));
        tokio::time::timeout(PATIENCE, listed).await.unwrap().unwrap();
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        bearer(&self.admin, message)
    }

    pub(crate) fn builds(&self) -> BuildServiceClient<Channel> {
        BuildServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn submit(&self, jobs: Vec<v1::JobSpec>) -> v1::Build {
        let spec = Some(v1::BuildSpec { jobs, ..Default::default() });
        let request = v1::SubmitBuildRequest { spec, ..Default::default() };
        let answer = self.builds().submit_build(self.request(request)).await.unwrap();
        answer.into_inner().build.unwrap()
    }

    /// An enrolled agent that is connected.
    pub(crate) async fn agent(&self, name: &str) -> Agent {
        let request = v1::CreateTokenRequest {
            name: format!("enrol-{name}"),
            role: v1::Role::Enroller.into(),
            ..Default::default()
        };
        let mut admins = AdminServiceClient::new(self.channel.clone());
        let token = admins.create_token(self.request(request)).await.unwrap().into_inner().secret;
        let credential: [u8; 32] = Sha256::digest(name).into();
        let request = v1::EnrollAgentRequest {
            token,
            name: name.into(),
            credential_sha256: Sha256::digest(credential).to_vec(),
            ..Default::default()
        };
        let mut agents = AgentServiceClient::new(self.channel.clone());
        let id = agents.enroll_agent(request).await.unwrap().into_inner().agent;
        let hex = credential.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        let secret = format!("{id}.{hex}");

        let (frames, said) = mpsc::channel(16);
        let backend = v1::BackendOffer {
            backend: "shell".into(),
            slots: 4,
            operations: vec!["script".into()],
            ..Default::default()
        };
        let profile = v1::AgentProfile { backends: vec![backend], ..Default::default() };
        let hello = v1::Hello {
            instance: name.into(),
            epoch: 1,
            protocol_min: kiln_proto::PROTOCOL_MIN,
            protocol_max: kiln_proto::PROTOCOL_MAX,
            profile: Some(profile),
            journal: vec![],
        };
        frames.send(v1::SessionRequest { frame: Some(Frame::Hello(hello)) }).await.unwrap();
        let opened = agents.session(bearer(&secret, ReceiverStream::new(said))).await.unwrap();
        Agent { secret, frames, words: opened.into_inner() }
    }
}

pub(crate) fn bearer<T>(secret: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {secret}").parse().unwrap());
    request
}

pub(crate) fn shell(name: &str) -> v1::JobSpec {
    let (name, backend, script) = (name.into(), "shell".into(), "true".into());
    v1::JobSpec { name, backend, script, ..Default::default() }
}

pub(crate) struct Agent {
    pub(crate) secret: String,
    frames: mpsc::Sender<v1::SessionRequest>,
    words: Streaming<v1::SessionResponse>,
}

impl Agent {
    pub(crate) async fn say(&self, frame: Frame) {
        self.frames.send(v1::SessionRequest { frame: Some(frame) }).await.unwrap();
    }

    pub(crate) async fn start(&self, lease: &str) {
        self.say(Frame::Started(v1::Started { lease: lease.into() })).await;
    }

    /// What `pick` finds in the next words.
    pub(crate) async fn hear<T>(&mut self, pick: impl Fn(Said) -> Option<T>) -> T {
        let heard = async {
            loop {
                let word = self.words.message().await.unwrap().expect("the stream goes on");
                if let Some(found) = word.frame.and_then(&pick) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("it is said in time")
    }

    pub(crate) async fn assigned(&mut self) -> v1::Assign {
        self.hear(|word| match word {
            Said::Assign(assign) => Some(assign),
            _ => None,
        })
        .await
    }

    /// A lease that it began.
    pub(crate) async fn running(&mut self) -> v1::Assign {
        let assign = self.assigned().await;
        self.start(&assign.lease).await;
        assign
    }

    pub(crate) async fn acked(&mut self) -> String {
        self.hear(|word| match word {
            Said::Ack(ack) => Some(ack.lease),
            _ => None,
        })
        .await
    }

    pub(crate) async fn abandoned(&mut self) -> String {
        self.hear(|word| match word {
            Said::Abandon(abandon) => Some(abandon.lease),
            _ => None,
        })
        .await
    }
}
