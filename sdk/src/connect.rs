//! Opens connections, plain or over TLS.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::codegen::http::Uri;
use tower::Service;

use crate::tls::{Fault, Tls};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a server with TLS answers to who does not speak it.
const NO_TLS: &[u8] = b"HTTP/1.";
/// The first byte of a record that says what is wrong.
const ALERT_RECORD: u8 = 0x15;

/// Connects to the host of an address; over TLS where it has one.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    pub(crate) tls: Option<Tls>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<TokioIo<Stream>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let config = self.tls.as_ref().map(Tls::config);
        Box::pin(async move {
            let host = address.host().ok_or("the address names no host")?;
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let usual = if config.is_some() { 443 } else { 80 };
            let port = address.port_u16().unwrap_or(usual);
            let io = TcpStream::connect((host.as_str(), port)).await?;
            io.set_nodelay(true)?;
            let io = match config {
                None => Io::Plain { io, silent: true },
                Some(config) => {
                    let name = ServerName::try_from(host.clone())?;
                    let io = TlsConnector::from(config).connect(name, io).await;
                    Io::Tls(Box::new(io.map_err(|error| told(error, &host))?))
                }
            };
            Ok(TokioIo::new(Stream { io, host }))
        })
    }
}

/// An error of TLS as a person can mend it; any other as it is.
fn told(error: io::Error, host: &str) -> io::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match cause.and_then(|cause| Fault::of(cause, host)) {
        Some(fault) => io::Error::new(io::ErrorKind::InvalidData, fault),
        None => error,
    }
}

/// An open connection, which says what is wrong with it.
#[derive(Debug)]
pub(crate) struct Stream {
    io: Io,
    host: String,
}

#[derive(Debug)]
enum Io {
    /// Silent: the server has said nothing yet.
    Plain {
        io: TcpStream,
        silent: bool,
    },
    Tls(Box<TlsStream<TcpStream>>),
}

trait Both: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

impl Stream {
    fn io(&mut self) -> Pin<&mut dyn Both> {
        match &mut self.io {
            Io::Plain { io, .. } => Pin::new(io),
            Io::Tls(io) => Pin::new(io),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let Err(error) = ready!(self.io().poll_read(cx, buffer)) {
            return Poll::Ready(Err(told(error, &self.host)));
        }
        let said = &buffer.filled()[before..];
        if let Io::Plain { silent, .. } = &mut self.io
            && !said.is_empty()
            && std::mem::take(silent)
            && (said.starts_with(NO_TLS) || said[0] == ALERT_RECORD)
        {
            return Poll::Ready(Err(io::Error::other(Fault::speaks_tls())));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
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
            Io::Plain { io, .. } => io.is_write_vectored(),
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
