//! A server for one agent, in this process: it gives what a test tells it to give, and keeps what it hears.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, stream};
use kiln_core::{
    id::{LeaseId, SessionId},
    session::Assignment,
};
use kiln_proto::{convert, v1};
use sha2::{Digest, Sha256};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Server};
use uuid::Uuid;
use v1::{
    agent_service_server::{AgentService, AgentServiceServer},
    artifact_service_server::{ArtifactService, ArtifactServiceServer},
    log_service_server::{LogService, LogServiceServer},
    session_request, session_response,
};

type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Debug, Default, Clone)]
pub(crate) struct Log {
    pub(crate) bytes: Vec<u8>,
    pub(crate) stages: Vec<v1::Stage>,
    pub(crate) sealed: bool,
    /// Bytes that came although they were acknowledged.
    pub(crate) repeated: usize,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) hellos: Vec<v1::Hello>,
    pub(crate) started: Vec<String>,
    pub(crate) refused: Vec<v1::Refused>,
    pub(crate) finished: Vec<v1::Finished>,
    pub(crate) logs: HashMap<(String, String), Log>,
    pub(crate) blobs: HashMap<String, Bytes>,
    pub(crate) heartbeats: usize,
    pub(crate) bearers: Vec<String>,
    pub(crate) enrolled: Vec<v1::EnrollAgentRequest>,
    /// What Welcome says of the secrets of every kept lease.
    pub(crate) secrets: Vec<v1::Secret>,
    /// Results are not acknowledged.
    pub(crate) deaf: bool,
    session: Option<(SessionId, mpsc::Sender<Result<v1::SessionResponse, Status>>)>,
    cut: CancellationToken,
    sessions: u128,
}

#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    pub(crate) url: String,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fake = Self { state: Arc::default(), changed: Arc::default(), url };
        let server = Server::builder()
            .add_service(AgentServiceServer::new(fake.clone()))
            .add_service(LogServiceServer::new(fake.clone()))
            .add_service(ArtifactServiceServer::new(fake.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(server);
        fake
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.notify_waiters();
        result
    }

    /// Waits until something is so.
    pub(crate) async fn until(&self, what: &str, so: impl Fn(&State) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if so(&self.state()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait)
            .await
            .unwrap_or_else(|_| panic!("{what}"));
    }

    /// Says something in the open session.
    pub(crate) async fn say(&self, frame: impl FnOnce(SessionId) -> session_response::Frame) {
        self.until("a session", |state| state.session.is_some()).await;
        let (session, sender) = self.state().session.clone().unwrap();
        let frame = v1::SessionResponse { frame: Some(frame(session)) };
        sender.send(Ok(frame)).await.unwrap();
    }

    pub(crate) async fn assign(&self, assignment: &Assignment, secrets: Vec<v1::Secret>) {
        let assignment = assignment.clone();
        self.say(|session| {
            let assign = convert::assign(session, assignment, &[]);
            session_response::Frame::Assign(v1::Assign { secrets, ..assign })
        })
        .await;
    }

    /// Ends all streams that are open.
    pub(crate) fn cut(&self) {
        self.change(|state| {
            state.session = None;
            std::mem::take(&mut state.cut).cancel();
        });
    }

    pub(crate) fn log(&self, lease: LeaseId) -> Log {
        let key = (lease.to_string(), "main".to_owned());
        self.state().logs.get(&key).cloned().unwrap_or_default()
    }

    pub(crate) async fn sealed(&self, lease: LeaseId) -> Log {
        let key = (lease.to_string(), "main".to_owned());
        self.until("the log to be sealed", |state| {
            state.logs.get(&key).is_some_and(|log| log.sealed)
        })
        .await;
        self.log(lease)
    }

    pub(crate) async fn finished(&self) -> v1::Finished {
        self.until("a result", |state| !state.finished.is_empty()).await;
        self.state().finished[0].clone()
    }

    pub(crate) fn put_blob(&self, bytes: &[u8]) -> String {
        let sha256 = sha256(bytes);
        self.change(|state| state.blobs.insert(sha256.clone(), Bytes::copy_from_slice(bytes)));
        sha256
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tonic::async_trait]
impl AgentService for Fake {
    async fn enroll_agent(
        &self,
        request: Request<v1::EnrollAgentRequest>,
    ) -> Result<Response<v1::EnrollAgentResponse>, Status> {
        let first = self.change(|state| {
            state.enrolled.push(request.into_inner());
            state.enrolled.len() == 1
        });
        // The first answer is lost.
        if first {
            return Err(Status::unavailable("lost"));
        }
        let agent = format!("agt_{}", "0".repeat(32));
        Ok(Response::new(v1::EnrollAgentResponse { agent, certificate: None }))
    }

    async fn certify_agent(
        &self,
        _: Request<v1::CertifyAgentRequest>,
    ) -> Result<Response<v1::CertifyAgentResponse>, Status> {
        Err(Status::unimplemented("nothing is encrypted here"))
    }

    type SessionStream = ReceiverStream<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let bearer = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        let mut inbound = request.into_inner();
        let (sender, receiver) = mpsc::channel(64);
        let fake = self.clone();
        #[expect(clippy::disallowed_methods, reason = "ends with the stream")]
        tokio::spawn(async move {
            let cut = fake.change(|state| {
                state.bearers.push(bearer);
                state.cut.clone()
            });
            loop {
                let frame = tokio::select! {
                    () = cut.cancelled() => {
                        let _gone = sender.send(Err(Status::unavailable("cut"))).await;
                        return;
                    }
                    frame = inbound.message() => frame,
                };
                let Ok(Some(frame)) = frame else { return };
                if let Some(answer) = fake.hear(frame.frame.unwrap(), &sender) {
                    let answer = v1::SessionResponse { frame: Some(answer) };
                    let _gone = sender.send(Ok(answer)).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Fake {
    fn hear(
        &self,
        frame: session_request::Frame,
        sender: &mpsc::Sender<Result<v1::SessionResponse, Status>>,
    ) -> Option<session_response::Frame> {
        use session_request::Frame as F;
        self.change(|state| match frame {
            F::Hello(hello) => {
                state.sessions += 1;
                let session = SessionId::from_uuid(Uuid::from_u128(state.sessions));
                state.session = Some((session, sender.clone()));
                let keep = hello.journal.iter().map(|entry| v1::KeptLease {
                    lease: entry.lease.clone(),
                    secrets: state.secrets.clone(),
                    cancelling: false,
                });
                let welcome = v1::Welcome {
                    session: session.to_string(),
                    protocol: 1,
                    heartbeat_ms: 100,
                    grace_ms: 60_000,
                    keep: keep.collect(),
                    abandon: vec![],
                };
                state.hellos.push(hello);
                Some(session_response::Frame::Welcome(welcome))
            }
            F::Heartbeat(_) => {
                state.heartbeats += 1;
                Some(session_response::Frame::Beat(v1::Beat {}))
            }
            F::Started(started) => {
                state.started.push(started.lease);
                None
            }
            F::Refused(refused) => {
                state.refused.push(refused);
                None
            }
            F::Finished(finished) => {
                let ack = v1::Ack { lease: finished.lease.clone() };
                state.finished.push(finished);
                (!state.deaf).then_some(session_response::Frame::Ack(ack))
            }
        })
    }
}

#[tonic::async_trait]
impl LogService for Fake {
    async fn read_log(
        &self,
        _: Request<v1::ReadLogRequest>,
    ) -> Result<Response<v1::ReadLogResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type FollowLogStream = Frames<v1::FollowLogResponse>;

    async fn follow_log(
        &self,
        _: Request<v1::FollowLogRequest>,
    ) -> Result<Response<Self::FollowLogStream>, Status> {
        Err(Status::unimplemented(""))
    }

    type PushLogStream = Frames<v1::PushLogResponse>;

    async fn push_log(
        &self,
        request: Request<Streaming<v1::PushLogRequest>>,
    ) -> Result<Response<Self::PushLogStream>, Status> {
        let cut = self.state().cut.clone();
        let start = (self.clone(), request.into_inner(), None, cut);
        let answers = stream::unfold(start, |(fake, mut inbound, mut key, cut)| async move {
            let frame = tokio::select! {
                () = cut.cancelled() => Err(Status::unavailable("cut")),
                frame = inbound.message() => frame,
            };
            let answer = match frame {
                Ok(Some(frame)) => fake.store(frame.frame.unwrap(), &mut key),
                Ok(None) => return None,
                Err(status) => Err(status),
            };
            Some((answer, (fake, inbound, key, cut)))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Fake {
    fn store(
        &self,
        frame: v1::push_log_request::Frame,
        key: &mut Option<(String, String)>,
    ) -> Result<v1::PushLogResponse, Status> {
        use v1::push_log_request::Frame as F;
        self.change(|state| {
            if let F::Open(open) = &frame {
                *key = Some((open.lease.clone(), open.stream.clone()));
            }
            let log = state.logs.entry(key.clone().unwrap()).or_default();
            let mut crc32 = 0;
            match frame {
                F::Open(_) => crc32 = crc32fast::hash(&log.bytes),
                F::Chunk(chunk) => {
                    let offset = usize::try_from(chunk.offset).unwrap();
                    if offset > log.bytes.len() {
                        return Err(Status::out_of_range("gap"));
                    }
                    let held = (log.bytes.len() - offset).min(chunk.data.len());
                    log.repeated += held;
                    log.bytes.extend_from_slice(&chunk.data[held..]);
                }
                F::Stage(stage) => log.stages.push(stage),
                F::End(end) => log.sealed = end.length == i64::try_from(log.bytes.len()).unwrap(),
            }
            Ok(v1::PushLogResponse {
                durable: i64::try_from(log.bytes.len()).unwrap(),
                crc32,
                stages: i32::try_from(log.stages.len()).unwrap(),
                sealed: log.sealed,
            })
        })
    }
}

#[tonic::async_trait]
impl ArtifactService for Fake {
    type PutArtifactStream = ReceiverStream<Result<v1::PutArtifactResponse, Status>>;

    async fn put_artifact(
        &self,
        request: Request<Streaming<v1::PutArtifactRequest>>,
    ) -> Result<Response<Self::PutArtifactStream>, Status> {
        use v1::put_artifact_request::Frame as F;
        let mut inbound = request.into_inner();
        let (sender, receiver) = mpsc::channel(4);
        let fake = self.clone();
        #[expect(clippy::disallowed_methods, reason = "ends with the stream")]
        tokio::spawn(async move {
            let mut opened = None;
            let mut bytes: Vec<u8> = vec![];
            while let Ok(Some(frame)) = inbound.message().await {
                match frame.frame.unwrap() {
                    F::Open(open) => opened = Some(open),
                    F::Data(data) => bytes.extend_from_slice(&data),
                }
                let open = opened.as_ref().unwrap();
                let held = i64::try_from(bytes.len()).unwrap();
                let stored = held == open.size;
                if stored {
                    assert_eq!(sha256(&bytes), open.sha256);
                    assert!(open.lease.starts_with("lse_"));
                    fake.put_blob(&bytes);
                }
                let _gone = sender.send(Ok(v1::PutArtifactResponse { held, stored })).await;
                if stored {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type GetArtifactStream = Frames<v1::GetArtifactResponse>;

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<Self::GetArtifactStream>, Status> {
        let Some(v1::get_artifact_request::What::Sha256(sha256)) = request.into_inner().what else {
            return Err(Status::unimplemented(""));
        };
        let data = self.state().blobs.get(&sha256).cloned();
        let data = data.ok_or_else(|| Status::not_found("no such blob"))?;
        let size = i64::try_from(data.len()).unwrap();
        let answer = v1::GetArtifactResponse { data, size, sha256 };
        Ok(Response::new(Box::pin(stream::iter([Ok(answer)]))))
    }

    async fn list_artifacts(
        &self,
        _: Request<v1::ListArtifactsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
