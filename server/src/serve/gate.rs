//! Connections: how many at all, how many from one address, and the end of those that carry no call in time. What is
//! turned away costs an accept and nothing that stays.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, future::ready};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};
use tonic::transport::server::Connected;

use crate::{
    config::Limits,
    grpc::auth::{Line, neighbourhood},
    metrics::Metrics,
};

#[derive(Debug, Default)]
struct Counts {
    all: u32,
    by_peer: HashMap<IpAddr, u32>,
}

/// Lets connections in. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    most: u32,
    most_of_peer: u32,
    first_call: Duration,
    counts: Arc<Mutex<Counts>>,
    metrics: Metrics,
}

impl Gate {
    pub(super) fn new(limits: &Limits, metrics: Metrics) -> Self {
        Self {
            metrics,
            most: limits.connections,
            most_of_peer: limits.connections_per_peer,
            first_call: Duration::from_millis(limits.first_call_ms),
            counts: Arc::default(),
        }
    }

    /// Those of the connections that there is room for.
    pub(super) fn admit(
        self,
        incoming: impl Stream<Item = io::Result<TcpStream>>,
    ) -> impl Stream<Item = io::Result<Connection>> {
        incoming.filter_map(move |accepted| {
            ready(match accepted {
                Ok(io) => self.connection(io).map(Ok),
                Err(error) => Some(Err(error)),
            })
        })
    }

    fn connection(&self, io: TcpStream) -> Option<Connection> {
        let peer = io.peer_addr().ok()?.ip();
        let Some(pass) = self.pass(neighbourhood(peer)) else {
            self.metrics.turned_away();
            tracing::debug!(%peer, "a connection is turned away: there are too many");
            return None;
        };
        Some(Connection {
            io,
            line: Line::new(peer),
            deadline: Some(Box::pin(tokio::time::sleep(self.first_call))),
            _pass: pass,
        })
    }

    fn pass(&self, peer: IpAddr) -> Option<Pass> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = counts.by_peer.get(&peer).copied().unwrap_or_default();
        if counts.all >= self.most || of_peer >= self.most_of_peer {
            return None;
        }
        counts.all += 1;
        counts.by_peer.insert(peer, of_peer + 1);
        Some(Pass { peer, counts: Arc::clone(&self.counts) })
    }
}

/// The place of one connection; dropped, it is free.
#[derive(Debug)]
struct Pass {
    peer: IpAddr,
    counts: Arc<Mutex<Counts>>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(of_peer) = counts.by_peer.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                counts.by_peer.remove(&self.peer);
            }
        }
    }
}

/// A connection that ends where no call comes in time.
#[derive(Debug)]
pub(super) struct Connection {
    io: TcpStream,
    line: Line,
    deadline: Option<Pin<Box<Sleep>>>,
    _pass: Pass,
}

impl Connected for Connection {
    type ConnectInfo = Line;

    fn connect_info(&self) -> Line {
        self.line.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.line.was_called() {
            self.deadline = None;
        } else if let Some(deadline) = &mut self.deadline
            && deadline.poll_unpin(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no call came")));
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
