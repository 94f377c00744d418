//! A server that answers little, remembers what it was asked, and cuts where its script says.

mod artifacts;
mod builds;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use kiln_sdk::v1::{
    admin_service_server::{AdminService, AdminServiceServer},
    artifact_service_server::ArtifactServiceServer,
    build_service_server::BuildServiceServer,
    log_service_server::LogServiceServer,
    *,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

pub(crate) const LOG: &str = "one\ntwo\nthree\nfour\n";

/// Where it cuts; zero is never.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Script {
    pub(crate) cut_events: i64,
    pub(crate) cut_log: usize,
    pub(crate) cut_upload: usize,
    pub(crate) cut_download: usize,
    pub(crate) refuse_submits: usize,
    pub(crate) pause: Duration,
    pub(crate) damage: bool,
}

/// What it was asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) watched: Vec<i64>,
    pub(crate) followed: Vec<(String, i64)>,
    pub(crate) keys: Vec<String>,
    pub(crate) tokens: usize,
    pub(crate) stored: Vec<u8>,
    pub(crate) offsets: Vec<usize>,
    pub(crate) gotten: Vec<usize>,
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) script: Script,
    pub(crate) seen: Arc<Mutex<Seen>>,
}

#[derive(Debug)]
pub(crate) struct Fake {
    addr: SocketAddr,
    state: State,
    stop: CancellationToken,
    _tasks: TaskTracker,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Fake {
    pub(crate) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = State { script, seen: Arc::default() };
        let server = tonic::transport::Server::builder()
            .add_service(BuildServiceServer::new(state.clone()))
            .add_service(LogServiceServer::new(state.clone()))
            .add_service(ArtifactServiceServer::new(state.clone()))
            .add_service(AdminServiceServer::new(state.clone()));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let tasks = TaskTracker::new();
        tasks.spawn(server.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped));
        Self { addr, state, stop, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn seen(&self) -> Seen {
        self.state.seen.lock().unwrap().clone()
    }

    pub(crate) fn hold(&self, content: Vec<u8>) {
        self.state.seen.lock().unwrap().stored = content;
    }
}

#[tonic::async_trait]
impl AdminService for State {
    async fn create_token(
        &self,
        _: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        self.seen.lock().unwrap().tokens += 1;
        Err(Status::unavailable("just now"))
    }

    async fn list_agents(
        &self,
        _: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn pause_agent(
        &self,
        _: Request<PauseAgentRequest>,
    ) -> Result<Response<PauseAgentResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn resume_agent(
        &self,
        _: Request<ResumeAgentRequest>,
    ) -> Result<Response<ResumeAgentResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn drain_agent(
        &self,
        _: Request<DrainAgentRequest>,
    ) -> Result<Response<DrainAgentResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn evict_agent(
        &self,
        _: Request<EvictAgentRequest>,
    ) -> Result<Response<EvictAgentResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_queue(
        &self,
        _: Request<GetQueueRequest>,
    ) -> Result<Response<GetQueueResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_tokens(
        &self,
        _: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn rotate_token(
        &self,
        _: Request<RotateTokenRequest>,
    ) -> Result<Response<RotateTokenResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_audit(
        &self,
        _: Request<ListAuditRequest>,
    ) -> Result<Response<ListAuditResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_authorities(
        &self,
        _: Request<ListAuthoritiesRequest>,
    ) -> Result<Response<ListAuthoritiesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn rotate_authority(
        &self,
        _: Request<RotateAuthorityRequest>,
    ) -> Result<Response<RotateAuthorityResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn revoke_token(
        &self,
        _: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
