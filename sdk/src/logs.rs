//! A log as one stream of bytes. After a cut it goes on at the next byte: none is missed, none comes twice.

use futures::{StreamExt, stream, stream::BoxStream};
use tonic::{Status, Streaming};

use crate::{
    Client, Error,
    retry::{Backoff, is_resumable},
    v1::{FollowLogRequest, FollowLogResponse},
};

/// Which log, and from where on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Id of the job.
    pub job: String,
    /// Id of one attempt's lease. Empty: the last attempt, and those that follow it.
    pub lease: String,
    /// Name of the stream. Empty: "main".
    pub stream: String,
    /// First byte.
    pub offset: i64,
}

impl Client {
    /// The pieces of a log, live until it is complete.
    pub fn logs(
        &self,
        request: LogRequest,
    ) -> BoxStream<'static, Result<FollowLogResponse, Error>> {
        let follow = Follow {
            client: self.clone(),
            seen: None,
            tail: false,
            whole: false,
            stream: None,
            backoff: Backoff::new(self.options().resume),
            complete: false,
            request,
        };
        stream::try_unfold(follow, |mut follow| async move {
            Ok(follow.next().await?.map(|piece| (piece, follow)))
        })
        .boxed()
    }
}

/// How far a lease was read.
struct Seen {
    lease: String,
    offset: i64,
}

struct Follow {
    client: Client,
    request: LogRequest,
    seen: Option<Seen>,
    /// The rest of one attempt is being read; those that follow it come after it.
    tail: bool,
    /// The attempt that was read last is complete: only what follows it is news.
    whole: bool,
    stream: Option<Streaming<FollowLogResponse>>,
    backoff: Backoff,
    complete: bool,
}

impl Follow {
    async fn next(&mut self) -> Result<Option<FollowLogResponse>, Error> {
        while !self.complete {
            let status = match self.step().await {
                Ok(Some(piece)) => {
                    if let Some(piece) = self.take(piece) {
                        self.backoff.progress();
                        return Ok(Some(piece));
                    }
                    continue;
                }
                Ok(None) => None,
                Err(status) if is_resumable(&status) => Some(status),
                Err(status) => return Err(status.into()),
            };
            self.stream = None;
            self.tail = self.request.lease.is_empty() && self.seen.is_some() && !self.whole;
            if !self.backoff.wait(status.as_ref()).await {
                let status = status
                    .unwrap_or_else(|| Status::unavailable("the server keeps ending the log"));
                return Err(status.into());
            }
            tracing::debug!("the log is followed again");
        }
        Ok(None)
    }

    async fn step(&mut self) -> Result<Option<FollowLogResponse>, Status> {
        let request = self.resumed();
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let call = async { self.client.log_service().follow_log(request).await };
                none.insert(self.client.once(call).await?)
            }
        };
        stream.message().await
    }

    /// What is still wanted. An attempt that was begun is named: "the last one" may be another by now.
    fn resumed(&self) -> FollowLogRequest {
        let LogRequest { job, lease, stream, offset } = self.request.clone();
        match &self.seen {
            Some(seen) if self.tail || !lease.is_empty() => {
                FollowLogRequest { job, lease: seen.lease.clone(), stream, offset: seen.offset }
            }
            Some(_) => FollowLogRequest { job, lease, stream, offset: 0 },
            None => FollowLogRequest { job, lease, stream, offset },
        }
    }

    /// Drops the bytes that were seen before, and says nothing of a piece that holds no news.
    fn take(&mut self, mut piece: FollowLogResponse) -> Option<FollowLogResponse> {
        let known = self.seen.as_ref().filter(|seen| seen.lease == piece.lease);
        let from = known.map_or(piece.offset, |seen| seen.offset);
        let end = piece.offset + i64::try_from(piece.data.len()).unwrap_or(i64::MAX);
        let double = usize::try_from(from - piece.offset).unwrap_or(0).min(piece.data.len());
        let stale = known.is_some() && end <= from && (double > 0 || end < from);
        if double > 0 {
            piece.data = piece.data.slice(double..);
            piece.offset = from;
        }
        self.whole &= known.is_some();
        if !piece.lease.is_empty() {
            self.seen = Some(Seen { lease: piece.lease.clone(), offset: end.max(from) });
        }
        if stale {
            piece.stage = None;
        }
        if piece.complete && self.tail {
            (self.tail, self.whole, self.stream, piece.complete) = (false, true, None, false);
        }
        self.complete = piece.complete;
        (piece.complete || piece.stage.is_some() || !piece.data.is_empty()).then_some(piece)
    }
}
