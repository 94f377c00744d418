//! Both services over a real connection.

use std::sync::Arc;

use kiln_core::id::AgentId;
use kiln_proto::v1::{
    self, log_service_client::LogServiceClient, log_service_server::LogServiceServer,
    push_log_request::Frame,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Code, Request, Status,
    transport::{Channel, server::TcpIncoming},
};

use super::*;
use crate::{
    app::Caller,
    logs::{LogIndex, Parts, fs::FsStore, memory::MemoryIndex},
    metrics::Metrics,
    store::memory::Memory,
    uploads::fixture::World,
};

struct Rig {
    world: World,
    logs: Logs,
    tasks: TaskTracker,
    stop: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Rig {
    async fn new() -> Self {
        let world = World::new(Arc::new(Memory::default())).await;
        let folder = tempfile::tempdir().unwrap();
        let index: Arc<dyn LogIndex> = Arc::new(MemoryIndex::default());
        let store = FsStore::open(folder.path().to_owned(), Arc::clone(&index), "one").await;
        let parts = Parts {
            index,
            store: Arc::new(store.unwrap()),
            rows: Arc::clone(&world.rows),
            wake: world.wake.clone(),
            clock: world.clock.clone(),
            look: std::time::Duration::from_secs(3),
        };
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let logs = Logs::start(parts, &tasks, stop.clone());
        Self { world, logs, tasks, stop, _folder: folder }
    }

    /// A client whose calls are those of this agent.
    async fn client(&self, agent: AgentId) -> LogServiceClient<Channel> {
        let api = LogApi::new(
            self.logs.clone(),
            Metrics::default(),
            self.tasks.clone(),
            self.stop.clone(),
        );
        let name = "agent".to_owned();
        let service = LogServiceServer::with_interceptor(api, move |mut request: Request<()>| {
            let principal = Principal::Agent { id: agent, name: name.clone(), certificate: None };
            request.extensions_mut().insert(Caller { principal, peer: None });
            Ok(request)
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(service);
        let incoming = TcpIncoming::from(listener);
        self.tasks.spawn(server.serve_with_incoming(incoming));
        LogServiceClient::connect(format!("http://{address}")).await.unwrap()
    }

    fn open(&self) -> Frame {
        let lease = self.world.lease.to_string();
        Frame::Open(v1::PushLogOpen { lease, stream: "main".to_owned() })
    }
}

fn chunk(offset: i64, data: &[u8]) -> Frame {
    Frame::Chunk(v1::PushLogChunk { offset, data: bytes::Bytes::copy_from_slice(data) })
}

async fn push(
    client: &mut LogServiceClient<Channel>,
    frames: Vec<Frame>,
) -> Result<Vec<v1::PushLogResponse>, Status> {
    let frames = frames.into_iter().map(|frame| v1::PushLogRequest { frame: Some(frame) });
    let answers = client.push_log(stream::iter(frames)).await?.into_inner();
    futures::TryStreamExt::try_collect(answers).await
}

#[tokio::test]
async fn a_push_resumes_and_a_follower_gets_all_of_it() {
    let rig = Rig::new().await;
    let mut client = rig.client(rig.world.agent).await;
    let text: Vec<u8> = (0..=250).cycle().take(3_000_000).collect();
    let answers = push(
        &mut client,
        vec![rig.open(), chunk(0, &text[..1_000]), chunk(500, &text[500..9_000])],
    );
    let answers = answers.await.unwrap();
    assert_eq!((answers[0].durable, answers[0].crc32), (0, 0));
    assert_eq!(answers.last().unwrap().durable, 9_000);
    let job = rig.world.job.to_string();
    let follow = v1::FollowLogRequest { job: job.clone(), ..Default::default() };
    let mut following = client.follow_log(follow).await.unwrap().into_inner();

    let mut frames = vec![rig.open()];
    let stage = v1::Stage { name: "script".to_owned(), time_ms: 1, offset: 9_000 };
    frames.push(Frame::Stage(stage));
    let pieces = text[9_000..].chunks(100_000).enumerate();
    frames.extend(pieces.map(|(n, data)| chunk(9_000 + 100_000 * i64::try_from(n).unwrap(), data)));
    frames.push(Frame::End(v1::PushLogEnd { length: 3_000_000 }));
    let answers = push(&mut client, frames).await.unwrap();
    assert_eq!((answers[0].durable, answers[0].crc32), (9_000, crc32fast::hash(&text[..9_000])));
    let last = answers.last().unwrap();
    assert_eq!((last.durable, last.stages, last.sealed), (3_000_000, 1, true));
    rig.world.end(rig.world.lease, kiln_core::session::LeasePhase::Finished, 3_000_000).await;
    rig.world.finish_job().await;

    let (mut got, mut stages, mut complete) = (Vec::new(), 0, false);
    while let Some(piece) = following.message().await.unwrap() {
        got.extend_from_slice(&piece.data);
        stages += usize::from(piece.stage.is_some());
        complete = piece.complete;
    }
    assert!(got == text);
    assert_eq!((stages, complete), (1, true));
    let read = v1::ReadLogRequest { job, offset: 2_999_990, ..Default::default() };
    let read = client.read_log(read).await.unwrap().into_inner();
    assert_eq!(read.data, text[2_999_990..]);
    assert!(read.log.unwrap().complete);
}

#[tokio::test]
async fn a_bad_push_is_refused_by_name_and_changes_nothing() {
    let rig = Rig::new().await;
    let mut client = rig.client(rig.world.agent).await;
    let open = || rig.open();
    let large = vec![0; (1 << 20) + 1];
    let cases = [
        (vec![chunk(0, b"x")], Code::InvalidArgument, "open"),
        (vec![open(), open()], Code::InvalidArgument, "open"),
        (vec![open(), chunk(-1, b"x")], Code::InvalidArgument, "chunk.offset"),
        (vec![open(), chunk(0, &large)], Code::InvalidArgument, "chunk.data"),
        (vec![open(), chunk(7, b"x")], Code::FailedPrecondition, "send from 0 on"),
        (vec![open(), Frame::End(v1::PushLogEnd { length: 5 })], Code::FailedPrecondition, "0"),
    ];
    for (frames, code, text) in cases {
        let status = push(&mut client, frames).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
    let mut stranger = rig.client(AgentId::from_uuid(uuid::Uuid::nil())).await;
    let status = push(&mut stranger, vec![open()]).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let answers = push(&mut client, vec![open()]).await.unwrap();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].durable, 0);
}
