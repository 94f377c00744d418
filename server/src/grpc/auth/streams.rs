//! Open streams by caller: how many, and their end where the credential that opened them is void.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use http_body::{Body, Frame};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use uuid::Uuid;

use crate::{
    app::{App, Principal},
    grpc::status,
};

/// When who has too many may come back: one of them may have ended.
const COME_BACK: Duration = Duration::from_secs(5);

/// Methods whose answer is a stream, but for Session: its end is its own matter.
pub(super) const STREAMS: &[&str] = &[
    "ArtifactService/GetArtifact",
    "ArtifactService/PutArtifact",
    "BuildService/WatchBuild",
    "LogService/FollowLog",
    "LogService/PushLog",
];

#[derive(Debug)]
struct Open {
    principal: Principal,
    count: u32,
    cut: CancellationToken,
}

/// Streams that are open now.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: Mutex<HashMap<Uuid, Open>>,
}

fn key(principal: &Principal) -> Uuid {
    match principal {
        Principal::Token { id, .. } => id.uuid(),
        Principal::Agent { id, .. } => id.uuid(),
    }
}

impl Streams {
    /// One more stream of this caller, who may have so many; zero is no limit. Agents open as many as their leases need;
    /// their connection bounds them.
    pub(super) fn open(
        self: &Arc<Self>,
        principal: &Principal,
        most: u32,
    ) -> Result<Permit, Status> {
        let id = key(principal);
        let mut all = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = all.entry(id).or_insert_with(|| Open {
            principal: principal.clone(),
            count: 0,
            cut: CancellationToken::new(),
        });
        let limited = matches!(principal, Principal::Token { .. }) && most > 0;
        if limited && open.count >= most {
            let text = format!("{most} streams are open with this token");
            return Err(status::too_much(text, "limits.streams", COME_BACK));
        }
        open.count += 1;
        Ok(Permit { streams: Arc::clone(self), id, cut: open.cut.clone() })
    }

    /// Cuts the streams of those whose credential is void by now.
    pub(super) async fn review(&self, app: &App) -> crate::app::Result<()> {
        let callers: Vec<Principal> = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.values().map(|open| open.principal.clone()).collect()
        };
        for principal in callers {
            if !app.is_valid(&principal).await? {
                let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(open) = open.get(&key(&principal)) {
                    open.cut.cancel();
                }
            }
        }
        Ok(())
    }
}

/// The right to one stream; dropped, the next may open one.
#[derive(Debug)]
pub(super) struct Permit {
    streams: Arc<Streams>,
    id: Uuid,
    cut: CancellationToken,
}

impl Permit {
    /// The body of the stream, with its right.
    pub(super) fn hold(self, inner: tonic::body::Body) -> tonic::body::Body {
        let cut = Box::pin(self.cut.clone().cancelled_owned());
        tonic::body::Body::new(Held { inner, cut, ended: false, _permit: self })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut all = self.streams.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = all.get_mut(&self.id) {
            open.count -= 1;
            if open.count == 0 {
                all.remove(&self.id);
            }
        }
    }
}

struct Held {
    inner: tonic::body::Body,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
    _permit: Permit,
}

impl Body for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.cut.poll_unpin(cx).is_ready() {
            self.ended = true;
            let status = status::unauthenticated("the credential of this stream is void");
            let trailers = status.into_http::<()>().into_parts().0.headers;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut self.inner).poll_frame(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;

    use super::*;

    #[test]
    fn the_streams_are_those_of_the_protocol() {
        let set = prost_types::FileDescriptorSet::decode(kiln_proto::DESCRIPTORS).unwrap();
        let services = set.file.iter().flat_map(|file| &file.service);
        let streams: BTreeSet<String> = services
            .flat_map(|service| {
                let streams = service.method.iter().filter(|method| method.server_streaming());
                streams.map(|method| format!("{}/{}", service.name(), method.name()))
            })
            .collect();
        let session = "AgentService/Session".to_owned();
        let counted = STREAMS.iter().map(|name| (*name).to_owned()).chain([session]);
        assert_eq!(streams, counted.collect());
    }
}
