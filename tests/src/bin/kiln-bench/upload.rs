//! Yardstick of logs: the same call with nothing behind it.

use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use kiln_proto::v1::{
    FollowLogRequest, FollowLogResponse, PushLogChunk, PushLogRequest, PushLogResponse,
    ReadLogRequest, ReadLogResponse,
    log_service_client::LogServiceClient,
    log_service_server::{LogService, LogServiceServer},
    push_log_request::Frame,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

const CHUNK: usize = 64 * 1024;
const CHUNKS: usize = 4_096;
const WINDOW: u32 = 4 << 20;

/// Reads everything and keeps nothing.
#[derive(Debug)]
struct Sink;

type Responses<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl LogService for Sink {
    type FollowLogStream = Responses<FollowLogResponse>;
    type PushLogStream = Responses<PushLogResponse>;

    async fn read_log(
        &self,
        _: Request<ReadLogRequest>,
    ) -> Result<Response<ReadLogResponse>, Status> {
        Err(Status::unimplemented("a yardstick"))
    }

    async fn follow_log(
        &self,
        _: Request<FollowLogRequest>,
    ) -> Result<Response<Self::FollowLogStream>, Status> {
        Err(Status::unimplemented("a yardstick"))
    }

    async fn push_log(
        &self,
        request: Request<Streaming<PushLogRequest>>,
    ) -> Result<Response<Self::PushLogStream>, Status> {
        let mut frames = request.into_inner();
        let mut durable = 0;
        while let Some(frame) = frames.message().await? {
            if let Some(Frame::Chunk(chunk)) = frame.frame {
                durable += i64::try_from(chunk.data.len()).unwrap_or(0);
            }
        }
        let last = PushLogResponse { durable, ..PushLogResponse::default() };
        Ok(Response::new(Box::pin(stream::iter([Ok(last)]))))
    }
}

/// Megabytes a second of a raw upload in chunks of 64 KiB.
pub(crate) async fn raw_upload() -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .add_service(LogServiceServer::new(Sink))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(server);
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(WINDOW)
        .connect()
        .await?;
    let mut client = LogServiceClient::new(channel);
    let mut best = 0.0_f64;
    for _ in 0..3 {
        let data = Bytes::from(vec![b'x'; CHUNK]);
        let chunks = stream::iter(0..CHUNKS).map(move |number| chunk(number, data.clone()));
        let start = Instant::now();
        let mut answers = client.push_log(chunks).await?.into_inner();
        while answers.message().await?.is_some() {}
        best = best.max(super::yardstick::rate((CHUNK * CHUNKS) as u64, start.elapsed()) / 1e6);
    }
    Ok(best)
}

fn chunk(number: usize, data: Bytes) -> PushLogRequest {
    let offset = i64::try_from(number * CHUNK).unwrap_or(i64::MAX);
    PushLogRequest { frame: Some(Frame::Chunk(PushLogChunk { offset, data })) }
}
