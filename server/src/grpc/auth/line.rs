//! The connection that a call came over.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// What the handshake of an encrypted connection has shown.
#[derive(Debug, Clone)]
pub struct Security {
    /// Of the key of the client's certificate, where it presented one.
    pub public_key_sha256: Option<[u8; 32]>,
}

/// Where a connection comes from, and whether it has carried a call. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Line {
    pub peer: IpAddr,
    /// Nothing: bytes go as they are.
    pub security: Option<Security>,
    called: Arc<AtomicBool>,
}

impl Line {
    pub fn new(peer: IpAddr) -> Self {
        Self { peer, security: None, called: Arc::default() }
    }

    #[must_use]
    pub fn secured(self, security: Security) -> Self {
        Self { security: Some(security), ..self }
    }

    pub(super) fn call(&self) {
        self.called.store(true, Ordering::Relaxed);
    }

    pub fn was_called(&self) -> bool {
        self.called.load(Ordering::Relaxed)
    }
}
