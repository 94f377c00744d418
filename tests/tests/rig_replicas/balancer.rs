//! A TCP load balancer as stands before replicas: each connection goes to the next server that takes it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};

/// Balances until it is dropped.
#[derive(Debug)]
pub(crate) struct Balancer {
    pub(crate) port: u16,
    _runtime: Runtime,
}

impl Balancer {
    pub(crate) fn start(servers: Vec<u16>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (servers, next) = (Arc::new(servers), Arc::new(AtomicUsize::new(0)));
        let handle = runtime.handle().clone();
        runtime.spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let (servers, first) = (Arc::clone(&servers), next.fetch_add(1, Ordering::SeqCst));
                handle.spawn(async move {
                    let ports = (0..servers.len()).map(|n| servers[(first + n) % servers.len()]);
                    for port in ports {
                        if let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await {
                            // Whichever side goes, the other sees it.
                            let _ = copy_bidirectional(&mut client, &mut server).await;
                            return;
                        }
                    }
                });
            }
        });
        Self { port, _runtime: runtime }
    }
}
