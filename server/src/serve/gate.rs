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
use rustls::server::ParsedCertificate;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use crate::{
    config::Limits,
    grpc::auth::{Line, Security, neighbourhood},
    live::Live,
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
    limits: Live<Limits>,
    counts: Arc<Mutex<Counts>>,
    metrics: Metrics,
}

impl Gate {
    pub(super) fn new(limits: Live<Limits>, metrics: Metrics) -> Self {
        Self { limits, counts: Arc::default(), metrics }
    }

    /// Those of the connections that there is room for.
    pub(super) fn admit(
        self,
        incoming: impl Stream<Item = io::Result<TcpStream>>,
    ) -> impl Stream<Item = io::Result<Admitted>> {
        incoming.filter_map(move |accepted| {
            ready(match accepted {
                Ok(io) => self.admitted(io).map(Ok),
                Err(error) => Some(Err(error)),
            })
        })
    }

    fn admitted(&self, io: TcpStream) -> Option<Admitted> {
        let peer = io.peer_addr().ok()?.ip();
        let Some(pass) = self.pass(neighbourhood(peer)) else {
            self.metrics.turned_away();
            tracing::debug!(%peer, "a connection is turned away: there are too many");
            return None;
        };
        let first_call = Duration::from_millis(self.limits.get().first_call_ms);
        Some(Admitted { io, line: Line::new(peer), first_call, pass })
    }

    fn pass(&self, peer: IpAddr) -> Option<Pass> {
        let limits = self.limits.get();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = counts.by_peer.get(&peer).copied().unwrap_or_default();
        if counts.all >= limits.connections || of_peer >= limits.connections_per_peer {
            return None;
        }
        counts.all += 1;
        counts.by_peer.insert(peer, of_peer + 1);
        Some(Pass { peer, counts: Arc::clone(&self.counts) })
    }
}

/// There is room for it; it has said nothing yet.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) io: TcpStream,
    pub(super) line: Line,
    first_call: Duration,
    pass: Pass,
}

impl Admitted {
    /// As it came.
    pub(super) fn plain(self) -> Connection {
        let Self { io, line, first_call, pass } = self;
        Connection::new(Io::Plain(io), line, first_call, pass)
    }

    /// As a handshake makes it; nothing where that fails.
    pub(super) async fn encrypted(self, tls: TlsAcceptor) -> io::Result<Connection> {
        let Self { io, line, first_call, pass } = self;
        let io = tls.accept(io).await?;
        let line = line.secured(Security { public_key_sha256: key_of(&io) });
        Ok(Connection::new(Io::Tls(Box::new(io)), line, first_call, pass))
    }
}

/// Of the key of the client's certificate, which the handshake has verified.
fn key_of(io: &TlsStream<TcpStream>) -> Option<[u8; 32]> {
    let certificate = io.get_ref().1.peer_certificates()?.first()?;
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(Sha256::digest(parsed.subject_public_key_info()).into())
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
    io: Io,
    line: Line,
    deadline: Option<Pin<Box<Sleep>>>,
    _pass: Pass,
}

/// What bytes go over.
#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    fn new(io: Io, line: Line, first_call: Duration, pass: Pass) -> Self {
        let deadline = Some(Box::pin(tokio::time::sleep(first_call)));
        Self { io, line, deadline, _pass: pass }
    }

    fn io(&mut self) -> Pin<&mut dyn Both> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io),
            Io::Tls(io) => Pin::new(io),
        }
    }
}

trait Both: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

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
        self.io().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}
