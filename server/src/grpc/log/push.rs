//! One upload of a log. While a group of frames is made durable, the next one gathers, up to a bound: a slow log is
//! acknowledged line by line, a fast one a segment at a time, and a disk that can't keep up slows its sender.

use bytes::Bytes;
use futures::{
    StreamExt,
    future::{BoxFuture, Fuse, FutureExt},
    stream::BoxStream,
};
use kiln_core::id::{AgentId, LeaseId};
use kiln_proto::{convert, v1};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{LogApi, failed, wide};
use crate::{
    grpc::{refuse, status},
    logs::{Error, Logs, MAX_READ, Stage, Writer},
    metrics::Metrics,
};
use kiln_core::spec::Violation;
use v1::push_log_request::Frame;

/// Bytes that gather while those before them are stored.
const GATHER: usize = 1 << 20;
/// As many more, each as large, gather for an upload that is faster than the disk's answer.
const MORE: usize = 7;
/// As many more gather in all uploads of this process.
static ROOM: Semaphore = Semaphore::const_new(64);
const MAX_CHUNK: usize = MAX_READ;
/// Stages that gather at most.
const STAGES: usize = 64;
/// Pieces that gather at most: a sender of single bytes must not cost a list of them.
const PIECES: usize = 4_096;

type Answer = Result<v1::PushLogResponse, Status>;
type Frames = Streaming<v1::PushLogRequest>;

/// Runs an upload as a task, so that what it writes is not cut off in the middle when its caller goes.
pub(super) fn start(api: &LogApi, agent: AgentId, frames: Frames) -> BoxStream<'static, Answer> {
    let (answers, answered) = mpsc::channel(8);
    let upload = api.clone();
    api.tasks.spawn(async move {
        if let Err(status) = run(&upload, agent, frames, &answers).await {
            // Who has gone needs no answer.
            let _ = answers.send(Err(status)).await;
        }
    });
    ReceiverStream::new(answered).boxed()
}

/// What gathered.
#[derive(Debug, Default)]
struct Group {
    offset: u64,
    pieces: Vec<Bytes>,
    bytes: usize,
    stages: Vec<Stage>,
    end: Option<u64>,
    /// Given back when it is stored.
    more: Option<SemaphorePermit<'static>>,
}

impl Group {
    fn is_full(&self) -> bool {
        self.bytes >= GATHER * (1 + self.more.as_ref().map_or(0, SemaphorePermit::num_permits))
            || self.pieces.len() >= PIECES
            || self.stages.len() >= STAGES
            || self.end.is_some()
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.stages.is_empty() && self.end.is_none()
    }

    fn add(&mut self, frame: Frame) -> Result<(), Status> {
        match frame {
            Frame::Open(_) => Err(wrong("open", "may be the first frame only")),
            Frame::Chunk(chunk) => self.add_chunk(&chunk),
            Frame::Stage(v1::Stage { name, time_ms, offset }) => {
                let offset = convert::unsigned("stage.offset", offset).map_err(refuse)?;
                self.stages.push(Stage { name, time: time_ms, offset });
                Ok(())
            }
            Frame::End(end) => {
                self.end = Some(convert::unsigned("end.length", end.length).map_err(refuse)?);
                Ok(())
            }
        }
    }

    fn add_chunk(&mut self, chunk: &v1::PushLogChunk) -> Result<(), Status> {
        let offset = convert::unsigned("chunk.offset", chunk.offset).map_err(refuse)?;
        if chunk.data.len() > MAX_CHUNK {
            return Err(wrong("chunk.data", "has more than 1 MiB; send smaller pieces"));
        }
        if self.pieces.is_empty() {
            self.offset = offset;
        }
        let wanted = self.offset + self.bytes as u64;
        if offset > wanted {
            return Err(failed(Error::Gap { wanted, offset }));
        }
        // A repeat within the group.
        let skip = usize::try_from(wanted - offset).unwrap_or(usize::MAX).min(chunk.data.len());
        let rest = chunk.data.slice(skip..);
        if !rest.is_empty() {
            self.bytes += rest.len();
            self.pieces.push(rest);
            self.make_room();
        }
        Ok(())
    }

    fn make_room(&mut self) {
        let held = self.more.as_ref().map_or(0, SemaphorePermit::num_permits);
        if self.bytes < GATHER * (1 + held) || held >= MORE {
            return;
        }
        match (&mut self.more, ROOM.try_acquire()) {
            (Some(all), Ok(one)) => all.merge(one),
            (None, Ok(one)) => self.more = Some(one),
            // The others have it; it stays at what each has.
            (_, Err(_)) => {}
        }
    }
}

fn wrong(field: &str, message: &str) -> Status {
    refuse(Violation::new(field, message))
}

async fn run(
    LogApi { logs, metrics, stop, .. }: &LogApi,
    agent: AgentId,
    mut frames: Frames,
    answers: &mpsc::Sender<Answer>,
) -> Result<(), Status> {
    let Some(writer) = open(logs, agent, &mut frames).await? else { return Ok(()) };
    let mut first = answer(&writer);
    first.crc32 = writer.crc();
    let _ = answers.send(Ok(first)).await;
    let (mut writer, mut group) = (Some(writer), Group::default());
    let mut storing: Fuse<BoxFuture<'static, Result<Writer, Status>>> = Fuse::terminated();
    let mut end = None;
    loop {
        if let Some(idle) = writer.take() {
            if !group.is_empty() {
                storing = store(idle, std::mem::take(&mut group), metrics.clone()).boxed().fuse();
            } else if idle.is_replaced() {
                return Err(failed(Error::Replaced));
            } else if let Some(end) = end {
                return end;
            } else {
                writer = Some(idle);
            }
        }
        let replaced = async {
            match &writer {
                Some(idle) => idle.replaced().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            stored = &mut storing => {
                let stored = stored?;
                let _ = answers.send(Ok(answer(&stored))).await;
                writer = Some(stored);
            }
            () = replaced => return Err(failed(Error::Replaced)),
            () = stop.cancelled() => {
                // What was begun is finished; the rest is sent again.
                if writer.is_none() {
                    let stored = storing.await?;
                    let _ = answers.send(Ok(answer(&stored))).await;
                }
                return Err(status::going_away());
            }
            frame = frames.message(), if end.is_none() && !group.is_full() => match frame {
                Ok(Some(frame)) => group.add(frame.frame.ok_or_else(|| wrong("frame", "is empty"))?)?,
                Ok(None) => end = Some(Ok(())),
                Err(status) => end = Some(Err(status)),
            },
        }
    }
}

/// The writer that the first frame asks for; none where there is no frame.
async fn open(logs: &Logs, agent: AgentId, frames: &mut Frames) -> Result<Option<Writer>, Status> {
    let Some(first) = frames.message().await? else { return Ok(None) };
    let Some(Frame::Open(open)) = first.frame else {
        return Err(wrong("open", "must be the first frame"));
    };
    let lease: LeaseId = convert::id("open.lease", &open.lease).map_err(refuse)?;
    logs.writer(agent, lease, &open.stream).await.map(Some).map_err(failed)
}

async fn store(mut writer: Writer, group: Group, metrics: Metrics) -> Result<Writer, Status> {
    let before = writer.durable();
    writer.append(group.offset, &group.pieces).await.map_err(failed)?;
    metrics.log_taken(writer.durable().saturating_sub(before));
    for stage in &group.stages {
        writer.stage(stage).await.map_err(failed)?;
    }
    if let Some(length) = group.end {
        writer.finish(length).await.map_err(failed)?;
    }
    Ok(writer)
}

fn answer(writer: &Writer) -> v1::PushLogResponse {
    v1::PushLogResponse {
        durable: wide(writer.durable()),
        crc32: 0,
        stages: i32::try_from(writer.stages()).unwrap_or(i32::MAX),
        sealed: writer.is_sealed(),
    }
}
