//! One upload of one log stream.

use bytes::Bytes;
use kiln_core::id::LeaseId;
use kiln_sdk::v1::{self, push_log_request::Frame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::Server;
use crate::run::StageMark;

/// Frames between the reader of the spool and the socket: at most this many chunks are in memory.
const QUEUE: usize = 4;

/// What the server holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acked {
    pub durable: u64,
    /// Of the durable bytes; in the first answer only.
    pub crc32: u32,
    pub stages: usize,
    pub sealed: bool,
}

/// Why an upload ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The server wants nothing more of this log, ever.
    #[error("the server takes no more of the log: {0}")]
    Closed(String),
    #[error("{0}")]
    Cut(String),
}

impl From<Status> for PushError {
    fn from(status: Status) -> Self {
        let text = format!("{:?}: {}", status.code(), status.message());
        match status.code() {
            Code::NotFound | Code::PermissionDenied => Self::Closed(text),
            // A gap, or an upload that took the place of ours: open again.
            Code::FailedPrecondition if is_over(&kiln_sdk::Error::from(status)) => {
                Self::Closed(text)
            }
            _ => Self::Cut(text),
        }
    }
}

/// The server says that the log is closed for good.
fn is_over(error: &kiln_sdk::Error) -> bool {
    matches!(error.reason(), Some("LOG_SEALED" | "LEASE_STALE"))
}

fn cut() -> PushError {
    PushError::Cut("the stream ended".to_owned())
}

/// The sending half of an upload.
#[derive(Debug)]
pub struct Pusher(mpsc::Sender<v1::PushLogRequest>);

impl Pusher {
    async fn send(&self, frame: Frame) -> Result<(), PushError> {
        self.0.send(v1::PushLogRequest { frame: Some(frame) }).await.map_err(|_| cut())
    }

    pub(crate) async fn chunk(&self, offset: u64, data: Bytes) -> Result<(), PushError> {
        self.send(Frame::Chunk(v1::PushLogChunk { offset: signed(offset), data })).await
    }

    pub(crate) async fn stage(&self, mark: &StageMark) -> Result<(), PushError> {
        let StageMark { name, time_ms, offset } = mark.clone();
        self.send(Frame::Stage(v1::Stage { name, time_ms, offset: signed(offset) })).await
    }

    pub(crate) async fn end(&self, length: u64) -> Result<(), PushError> {
        self.send(Frame::End(v1::PushLogEnd { length: signed(length) })).await
    }
}

/// The receiving half of an upload.
#[derive(Debug)]
pub(crate) struct Acks(Streaming<v1::PushLogResponse>);

impl Acks {
    pub(crate) async fn next(&mut self) -> Result<Acked, PushError> {
        let answer = self.0.message().await?.ok_or_else(cut)?;
        Ok(Acked {
            durable: u64::try_from(answer.durable).unwrap_or(0),
            crc32: answer.crc32,
            stages: usize::try_from(answer.stages).unwrap_or(0),
            sealed: answer.sealed,
        })
    }
}

impl Server {
    /// Opens an upload; the first answer says where to begin.
    pub(crate) async fn push_log(
        &self,
        lease: LeaseId,
        stream: &str,
    ) -> Result<(Pusher, Acks, Acked), PushError> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let pusher = Pusher(sender);
        let open = v1::PushLogOpen { lease: lease.to_string(), stream: stream.to_owned() };
        pusher.send(Frame::Open(open)).await?;
        let answer = self.bulk.log_service().push_log(ReceiverStream::new(receiver)).await;
        let answer = answer.inspect_err(|status| _ = self.doubt(&status.clone().into()))?;
        let mut acks = Acks(answer.into_inner());
        let first = acks.next().await?;
        Ok((pusher, acks, first))
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    fn refused(reason: &str) -> PushError {
        let none = std::collections::HashMap::<String, String>::new();
        let details = ErrorDetails::with_error_info(reason, "kiln.dev", none);
        Status::with_error_details(Code::FailedPrecondition, "no", details).into()
    }

    #[test]
    fn a_log_is_given_up_only_when_it_is_closed_for_good() {
        for reason in ["LOG_SEALED", "LEASE_STALE"] {
            assert!(matches!(refused(reason), PushError::Closed(_)), "{reason}");
        }
        for reason in ["LOG_GAP", "UPLOAD_REPLACED"] {
            assert!(matches!(refused(reason), PushError::Cut(_)), "{reason}");
        }
        assert!(matches!(PushError::from(Status::unavailable("")), PushError::Cut(_)));
    }
}
