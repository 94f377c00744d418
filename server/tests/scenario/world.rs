//! The server under test, and those who talk to it.

use std::{sync::Arc, time::Duration};

use kiln_proto::v1::{
    self, admin_service_client::AdminServiceClient, agent_service_client::AgentServiceClient,
    build_service_client::BuildServiceClient, project_service_client::ProjectServiceClient,
    session_request::Frame, session_response::Frame as Said,
};
use kiln_server::{Base, Config, Running, serve_with, store::memory::Memory};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

pub(crate) type Client = InterceptedService<Channel, Bearer>;

pub(crate) struct World {
    pub(crate) running: Option<Running>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) admin: String,
    channel: Channel,
    _home: TempDir,
}

/// The answer to a plain HTTP request, its head included.
pub(crate) async fn get(address: std::net::SocketAddr, path: &str, secret: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let bearer = match secret {
        "" => String::new(),
        secret => format!("authorization: Bearer {secret}\r\n"),
    };
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{bearer}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(|config| config).await
    }

    pub(crate) async fn with(change: impl FnOnce(Config) -> Config) -> Self {
        let base = Base::local(Arc::new(Memory::default()));
        Self::on(base, tempfile::tempdir().unwrap(), change).await
    }

    /// As `with`, on what the caller brings.
    pub(crate) async fn on(
        base: Base,
        home: TempDir,
        change: impl FnOnce(Config) -> Config,
    ) -> Self {
        let config = change(Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: home.path().to_owned(),
            ..Config::default()
        });
        let shutdown = CancellationToken::new();
        let running = serve_with(config, base, shutdown.clone()).await.unwrap();
        let address = running.addr;
        let admin = std::fs::read_to_string(home.path().join("admin.token")).unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let admin = admin.trim().to_owned();
        Self { running: Some(running), shutdown, address, admin, channel, _home: home }
    }

    pub(crate) async fn get(&self, path: &str, secret: &str) -> String {
        get(self.address, path, secret).await
    }

    pub(crate) fn client(&self, secret: &str) -> Client {
        let value = (!secret.is_empty()).then(|| format!("Bearer {secret}").parse().unwrap());
        InterceptedService::new(self.channel.clone(), Bearer(value))
    }

    pub(crate) fn builds(&self) -> BuildServiceClient<Client> {
        BuildServiceClient::new(self.client(&self.admin))
    }

    pub(crate) fn admins(&self) -> AdminServiceClient<Client> {
        AdminServiceClient::new(self.client(&self.admin))
    }

    pub(crate) fn projects(&self) -> ProjectServiceClient<Client> {
        ProjectServiceClient::new(self.client(&self.admin))
    }

    pub(crate) async fn token(&self, name: &str, role: v1::Role, project: &str) -> String {
        let request = v1::CreateTokenRequest {
            name: name.into(),
            role: role.into(),
            project: project.into(),
            duration_ms: 0,
        };
        self.admins().create_token(request).await.unwrap().into_inner().secret
    }

    pub(crate) async fn submit(&self, jobs: Vec<v1::JobSpec>) -> v1::Build {
        let request = v1::SubmitBuildRequest {
            spec: Some(v1::BuildSpec { jobs, ..Default::default() }),
            ..Default::default()
        };
        self.builds().submit_build(request).await.unwrap().into_inner().build.unwrap()
    }

    pub(crate) async fn build(&self, id: &str) -> (v1::Build, Vec<v1::Job>) {
        let request = v1::GetBuildRequest { build: id.into() };
        let answer = self.builds().get_build(request).await.unwrap().into_inner();
        (answer.build.unwrap(), answer.jobs)
    }

    pub(crate) async fn watch(&self, id: &str, after: i64) -> Streaming<v1::WatchBuildResponse> {
        let request = v1::WatchBuildRequest { build: id.into(), after };
        self.builds().watch_build(request).await.unwrap().into_inner()
    }

    /// An enrolled agent.
    pub(crate) async fn agent(&self, name: &str) -> Agent {
        let token = self.token(&format!("enrol-{name}"), v1::Role::Enroller, "").await;
        let credential: [u8; 32] = Sha256::digest(name).into();
        let request = v1::EnrollAgentRequest {
            token,
            name: name.into(),
            credential_sha256: Sha256::digest(credential).to_vec(),
            ..Default::default()
        };
        let mut open = AgentServiceClient::new(self.client(""));
        let id = open.enroll_agent(request).await.unwrap().into_inner().agent;
        let hex = credential.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        let secret = format!("{id}.{hex}");
        let client = AgentServiceClient::new(self.client(&secret));
        Agent { client, secret, epoch: 0 }
    }
}

pub(crate) struct Agent {
    client: AgentServiceClient<Client>,
    pub(crate) secret: String,
    epoch: i64,
}

/// One stream of an agent.
pub(crate) struct Link {
    frames: mpsc::Sender<v1::SessionRequest>,
    words: Streaming<v1::SessionResponse>,
    /// Words that were passed over.
    passed: Vec<Said>,
    pub(crate) welcome: v1::Welcome,
}

pub(crate) fn shell(name: &str) -> v1::JobSpec {
    let (name, backend, script) = (name.into(), "shell".into(), "true".into());
    v1::JobSpec { name, backend, script, ..Default::default() }
}

pub(crate) fn profile(slots: i32) -> v1::AgentProfile {
    let backend = v1::BackendOffer {
        backend: "shell".into(),
        slots,
        operations: vec!["script".into()],
        ..Default::default()
    };
    v1::AgentProfile {
        arch: "x86_64".into(),
        os: "linux".into(),
        cpu_millis: 4_000,
        memory_bytes: 8 << 30,
        backends: vec![backend],
        ..Default::default()
    }
}

pub(crate) fn finished(lease: &str, state: v1::OutcomeState) -> Frame {
    let failed = state == v1::OutcomeState::Failed;
    let kind = if failed { v1::FailureKind::User } else { v1::FailureKind::Unspecified };
    let outcome = v1::Outcome {
        state: state.into(),
        failure: kind.into(),
        exit_code: failed.then_some(1),
        message: String::new(),
    };
    Frame::Finished(v1::Finished {
        lease: lease.into(),
        outcome: Some(outcome),
        ..Default::default()
    })
}

impl Agent {
    /// Says the first frame, whatever it is, and returns the stream.
    pub(crate) async fn open(
        &mut self,
        first: Frame,
    ) -> Result<(mpsc::Sender<v1::SessionRequest>, Streaming<v1::SessionResponse>), Status> {
        let (frames, said) = mpsc::channel(100);
        frames.send(v1::SessionRequest { frame: Some(first) }).await.unwrap();
        let words = self.client.session(ReceiverStream::new(said)).await?.into_inner();
        Ok((frames, words))
    }

    pub(crate) fn hello(
        &mut self,
        instance: &str,
        journal: &[(&str, v1::LeaseState)],
    ) -> v1::Hello {
        self.epoch += 1;
        let entry = |(lease, state): &(&str, v1::LeaseState)| v1::JournalEntry {
            lease: (*lease).to_owned(),
            state: (*state).into(),
        };
        v1::Hello {
            instance: instance.into(),
            epoch: self.epoch,
            protocol_min: kiln_proto::PROTOCOL_MIN,
            protocol_max: kiln_proto::PROTOCOL_MAX,
            profile: Some(profile(4)),
            journal: journal.iter().map(entry).collect(),
        }
    }

    pub(crate) async fn connect(&mut self, journal: &[(&str, v1::LeaseState)]) -> Link {
        let hello = self.hello("one", journal);
        self.greet(hello).await
    }

    /// As `connect`, with this Hello.
    pub(crate) async fn greet(&mut self, hello: v1::Hello) -> Link {
        let (frames, mut words) = self.open(Frame::Hello(hello)).await.unwrap();
        let Some(Said::Welcome(welcome)) = words.message().await.unwrap().unwrap().frame else {
            panic!("no Welcome")
        };
        Link { frames, words, passed: vec![], welcome }
    }

    /// Says the first frame and returns why the stream ends.
    pub(crate) async fn refused(&mut self, first: Frame) -> Status {
        let (_frames, mut words) = match self.open(first).await {
            Ok(opened) => opened,
            Err(status) => return status,
        };
        loop {
            match tokio::time::timeout(PATIENCE, words.message()).await.unwrap() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a reason"),
                Err(status) => return status,
            }
        }
    }
}

impl Link {
    pub(crate) async fn say(&self, frame: Frame) {
        self.frames.send(v1::SessionRequest { frame: Some(frame) }).await.unwrap();
    }

    pub(crate) async fn start(&self, lease: &str) {
        self.say(Frame::Started(v1::Started { lease: lease.into() })).await;
    }

    pub(crate) async fn finish(&self, lease: &str, state: v1::OutcomeState) {
        self.say(finished(lease, state)).await;
    }

    /// The first word that was not heard yet for which `pick` gives something.
    pub(crate) async fn hear<T>(&mut self, pick: impl Fn(&Said) -> Option<T>) -> T {
        let at = self.passed.iter().position(|word| pick(word).is_some());
        if let Some(at) = at {
            return pick(&self.passed.remove(at)).unwrap();
        }
        let heard = async {
            loop {
                let word = self.words.message().await.unwrap().expect("the stream goes on");
                let word = word.frame.unwrap();
                match pick(&word) {
                    Some(found) => return found,
                    None => self.passed.push(word),
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("the word is said in time")
    }

    pub(crate) async fn assigned(&mut self) -> v1::Assign {
        self.hear(|word| match word {
            Said::Assign(assign) => Some(assign.clone()),
            _ => None,
        })
        .await
    }

    /// The lease of the next Ack or Abandon, and whether it is an Ack.
    pub(crate) async fn answered(&mut self) -> (String, bool) {
        self.hear(|word| match word {
            Said::Ack(ack) => Some((ack.lease.clone(), true)),
            Said::Abandon(abandon) => Some((abandon.lease.clone(), false)),
            _ => None,
        })
        .await
    }

    pub(crate) async fn revoked(&mut self) -> String {
        self.hear(|word| match word {
            Said::Revoke(revoke) => Some(revoke.lease.clone()),
            _ => None,
        })
        .await
    }

    /// Why the stream ends.
    pub(crate) async fn end(mut self) -> Status {
        let ended = async {
            loop {
                match self.words.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("the stream ended without a reason"),
                    Err(status) => return status,
                }
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("the stream ends in time")
    }
}
