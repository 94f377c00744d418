//! A TCP proxy between two processes, and the ways in which a network fails.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::sleep,
};
use tokio_util::task::TaskTracker;

use super::blow::Cut;

const SLOW_BYTES: usize = 2 << 10;
const SLOW_PAUSE: Duration = Duration::from_millis(40);

/// What the network does at the moment.
#[derive(Debug, Clone, Copy)]
struct Weather {
    cut: Option<Cut>,
    /// Connections of an earlier age are reset.
    age: u64,
    /// Connections up to this number are never served again, and never ended.
    forgotten: u64,
}

impl Weather {
    fn carries(&self, number: u64) -> bool {
        self.cut != Some(Cut::Silent) && number > self.forgotten
    }
}

/// Listens on a port of its own for as long as it lives.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) port: u16,
    weather: watch::Sender<Weather>,
    made: Arc<AtomicU64>,
}

impl Proxy {
    pub(super) fn start(port: u16, to: u16) -> Result<Self> {
        let (weather, seen) = watch::channel(Weather { cut: None, age: 0, forgotten: 0 });
        let made = Arc::new(AtomicU64::new(0));
        let listener = listen(port).with_context(|| format!("listen on port {port}"))?;
        let relay = Relay { port, to, weather: seen, made: Arc::clone(&made) };
        TaskTracker::new().spawn(relay.serve(listener));
        Ok(Self { port, weather, made })
    }

    pub(super) fn cut(&self, cut: Cut) {
        let made = self.made.load(Ordering::Relaxed);
        self.weather.send_modify(|weather| match cut {
            // Those that are cut off may come back at once.
            Cut::Reset => weather.age += 1,
            Cut::Refuse => (weather.cut, weather.age) = (Some(cut), weather.age + 1),
            Cut::HalfOpen => weather.forgotten = made,
            Cut::Silent | Cut::Slow => weather.cut = Some(cut),
        });
    }

    pub(super) fn mend(&self) {
        self.weather.send_modify(|weather| weather.cut = None);
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], port)))?;
    socket.listen(256)
}

#[derive(Debug, Clone)]
struct Relay {
    port: u16,
    to: u16,
    weather: watch::Receiver<Weather>,
    made: Arc<AtomicU64>,
}

impl Relay {
    async fn serve(mut self, listener: TcpListener) {
        let mut listener = Some(listener);
        let mut weather = self.weather.clone();
        loop {
            if self.weather.borrow_and_update().cut == Some(Cut::Refuse) {
                listener = None;
                if self.weather.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let Some(open) = &listener else {
                // The port may not be free at once.
                listener = listen(self.port).ok();
                sleep(SLOW_PAUSE).await;
                continue;
            };
            tokio::select! {
                accepted = open.accept() => if let Ok((near, _)) = accepted {
                    let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
                    TaskTracker::new().spawn(self.clone().connection(near, number));
                },
                changed = weather.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn connection(self, mut near: TcpStream, number: u64) {
        let mut weather = self.weather.clone();
        let age = weather.borrow().age;
        if weather.wait_for(|now| now.carries(number)).await.is_err() {
            return;
        }
        let Ok(mut far) = TcpStream::connect(("127.0.0.1", self.to)).await else {
            let _ = near.set_zero_linger();
            return;
        };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let cut = {
            let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
            let carried = async {
                tokio::try_join!(
                    self.pump(near_read, far_write, number),
                    self.pump(far_read, near_write, number)
                )
            };
            tokio::select! {
                // The sender is gone: this round is over.
                changed = weather.wait_for(|now| now.age != age) => drop(changed),
                _ = carried => {}
            }
            weather.borrow().age != age
        };
        if cut {
            let _ = (near.set_zero_linger(), far.set_zero_linger());
        }
    }

    /// Carries bytes one way, as the weather lets them.
    async fn pump(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        number: u64,
    ) -> io::Result<()> {
        let mut weather = self.weather.clone();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let slow = weather.borrow().cut == Some(Cut::Slow);
            let most = if slow { SLOW_BYTES } else { buffer.len() };
            let count = from.read(&mut buffer[..most]).await?;
            weather.wait_for(|now| now.carries(number)).await.map_err(io::Error::other)?;
            if count == 0 {
                return to.shutdown().await;
            }
            if slow {
                sleep(SLOW_PAUSE).await;
            }
            to.write_all(&buffer[..count]).await?;
        }
    }
}
