//! A new backend is one file and one line: [`countdown`] is the file, `backends` has the line. The agent offers it, gets a job
//! for it, runs it and reports it, before a server of which there is no more than a session.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use std::{net::SocketAddr, sync::Arc};

use common::{LIMIT, assignment, countdown::Countdown, run, script_spec};
use kiln_agent::{Address, Config, backend::Backend, enroll, run_with};
use kiln_core::{
    id::{AgentId, SessionId},
    outcome::{FailureKind, Outcome},
    session::{Assignment, Report},
    spec::JobSpec,
};
use kiln_proto::{
    convert,
    v1::{
        Ack, CertifyAgentRequest, CertifyAgentResponse, EnrollAgentRequest, EnrollAgentResponse,
        Hello, SessionRequest, SessionResponse, Welcome,
        agent_service_server::{AgentService, AgentServiceServer},
        session_request::Frame as Said,
        session_response::Frame as Says,
    },
};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Server};
use uuid::Uuid;

fn backends() -> Vec<Arc<dyn Backend>> {
    vec![Arc::new(Countdown)]
}

/// Gives one job, and passes on what it hears.
struct OneJob {
    job: Assignment,
    heard: mpsc::Sender<Heard>,
}

#[derive(Debug)]
enum Heard {
    Hello(Box<Hello>),
    Started,
    Finished(Box<Report>),
}

#[tonic::async_trait]
impl AgentService for OneJob {
    type SessionStream = ReceiverStream<Result<SessionResponse, Status>>;

    async fn enroll_agent(
        &self,
        _request: Request<EnrollAgentRequest>,
    ) -> Result<Response<EnrollAgentResponse>, Status> {
        let agent = AgentId::from_uuid(Uuid::from_u128(9)).to_string();
        Ok(Response::new(EnrollAgentResponse { agent, certificate: None }))
    }

    async fn certify_agent(
        &self,
        _: Request<CertifyAgentRequest>,
    ) -> Result<Response<CertifyAgentResponse>, Status> {
        Err(Status::unimplemented("nothing is encrypted here"))
    }

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (say, says) = mpsc::channel(8);
        tokio::spawn(converse(request.into_inner(), say, self.job.clone(), self.heard.clone()));
        Ok(Response::new(ReceiverStream::new(says)))
    }
}

async fn converse(
    mut said: Streaming<SessionRequest>,
    say: mpsc::Sender<Result<SessionResponse, Status>>,
    job: Assignment,
    heard: mpsc::Sender<Heard>,
) {
    let session = SessionId::from_uuid(Uuid::from_u128(10));
    let frame = |frame| Ok(SessionResponse { frame: Some(frame) });
    while let Ok(Some(SessionRequest { frame: Some(said) })) = said.message().await {
        match said {
            Said::Hello(hello) => {
                let welcome = Welcome {
                    session: session.to_string(),
                    protocol: hello.protocol_max,
                    heartbeat_ms: 1_000,
                    grace_ms: 60_000,
                    ..Welcome::default()
                };
                say.send(frame(Says::Welcome(welcome))).await.unwrap();
                let assign = convert::assign(session, job.clone(), &[]);
                say.send(frame(Says::Assign(assign))).await.unwrap();
                heard.send(Heard::Hello(Box::new(hello))).await.unwrap();
            }
            Said::Started(_) => heard.send(Heard::Started).await.unwrap(),
            Said::Finished(finished) => {
                let lease = finished.lease.clone();
                let (_, report) = convert::report("finished", finished).unwrap();
                let _done = say.send(frame(Says::Ack(Ack { lease }))).await;
                let _done = heard.send(Heard::Finished(Box::new(report))).await;
            }
            _ => {}
        }
    }
}

async fn serve(job: Assignment) -> (SocketAddr, mpsc::Receiver<Heard>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heard, incoming) = mpsc::channel(64);
    let service = AgentServiceServer::new(OneJob { job, heard });
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (address, incoming)
}

/// Lets an agent with the backend run one job; gives what it offered and how the job ended.
async fn agent_runs(script: &str) -> (Hello, Report) {
    let (_dir, run) = run();
    let spec = JobSpec { backend: "countdown".to_owned(), no_source: true, ..script_spec(script) };
    let (address, mut hears) = serve(assignment(&run, spec)).await;
    let data = tempfile::tempdir().unwrap();
    let config = Config {
        server: format!("http://{address}"),
        data_dir: data.path().to_owned(),
        ..Config::default()
    };
    let server = Address { url: config.server.clone(), ..Address::default() };
    let identity = enroll(&server, "token", "test", data.path()).await.unwrap();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let supervisor = run.supervisor.clone();
    let agent =
        tokio::spawn(
            async move { run_with(config, &identity, backends(), supervisor, stop).await },
        );
    let Heard::Hello(hello) = hears.recv().await.unwrap() else { panic!("hello comes first") };
    let report = loop {
        match timeout(LIMIT, hears.recv()).await.unwrap().unwrap() {
            Heard::Finished(report) => break *report,
            Heard::Started | Heard::Hello(_) => {}
        }
    };
    shutdown.cancel();
    timeout(LIMIT, agent).await.unwrap().unwrap().unwrap();
    (*hello, report)
}

#[tokio::test]
async fn a_backend_is_one_file_and_one_line() {
    let (hello, report) = agent_runs("5").await;
    let offers = hello.profile.unwrap().backends;
    let kinds: Vec<_> = offers.iter().map(|offer| offer.backend.as_str()).collect();
    assert_eq!(kinds, ["countdown"]);
    assert_eq!(offers[0].operations, ["script"]);
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!(report.log_lengths["main"], "4\n3\n2\n1\n0\n".len() as u64);

    let (_, report) = agent_runs("five").await;
    let failed = Outcome::failed(FailureKind::User, "not a number");
    assert_eq!(report.outcome, failed);
}
