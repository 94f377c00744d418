//! New connections: through the gate, then, where TLS is on, through a handshake that is bounded in time and number.

use std::{io, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::TcpIncoming;

use super::{
    gate::{Admitted, Connection, Gate},
    tls::Tls,
};

/// A client that does not finish in time is turned away.
const WITHIN: Duration = Duration::from_secs(10);
/// Handshakes at once. The gate bounds how many of them are one peer's.
const HANDSHAKES: usize = 1_024;
/// The first byte of every TLS connection: a record of a handshake.
const HANDSHAKE_RECORD: u8 = 0x16;
/// What a client hears that speaks plain HTTP to a server with TLS. The SDK knows its first line.
const NO_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nThis server speaks TLS: use https:// in its address.\n";

/// Connections that are ready for calls.
pub(super) fn incoming(
    listener: TcpListener,
    gate: Gate,
    tls: Option<Arc<Tls>>,
    tasks: TaskTracker,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    let accepted = gate.admit(TcpIncoming::from(listener).with_nodelay(Some(true)));
    let ready = accepted.map(move |admitted| {
        let (tls, tasks, stop) = (tls.clone(), tasks.clone(), stop.clone());
        async move {
            match (admitted, tls) {
                (Err(error), _) => Some(Err(error)),
                (Ok(admitted), None) => Some(Ok(admitted.plain())),
                (Ok(admitted), Some(tls)) => {
                    let shaking = tasks.spawn(async move {
                        let shaking = tokio::time::timeout(WITHIN, shake(&tls, admitted));
                        stop.run_until_cancelled(shaking).await?.ok()?
                    });
                    shaking.await.ok().flatten().map(Ok)
                }
            }
        }
    });
    ready.buffer_unordered(HANDSHAKES).filter_map(std::future::ready)
}

async fn shake(tls: &Tls, admitted: Admitted) -> Option<Connection> {
    let mut first = [0];
    match admitted.io.peek(&mut first).await {
        Ok(1..) if first[0] == HANDSHAKE_RECORD => {}
        Ok(1..) => {
            explain(admitted.io).await;
            return None;
        }
        Ok(0) | Err(_) => return None,
    }
    let peer = admitted.line.peer;
    match admitted.encrypted(tls.config().into()).await {
        Ok(connection) => Some(connection),
        Err(error) => {
            tracing::debug!(%peer, %error, "a TLS handshake failed");
            None
        }
    }
}

/// Says why nothing else will be said.
async fn explain(mut io: TcpStream) {
    // What came is taken first: the answer would be lost with a connection that is closed over unread bytes.
    let mut some = [0; 4_096];
    let _ = io.try_read(&mut some);
    // Who does not hear it learns nothing; there is no more to be done.
    let _ = io.write_all(NO_TLS).await;
    let _ = io.shutdown().await;
}
