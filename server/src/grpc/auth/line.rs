//! The connection that a call came over.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Where a connection comes from, and whether it has carried a call. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Line {
    pub peer: IpAddr,
    called: Arc<AtomicBool>,
}

impl Line {
    pub fn new(peer: IpAddr) -> Self {
        Self { peer, called: Arc::default() }
    }

    pub(super) fn call(&self) {
        self.called.store(true, Ordering::Relaxed);
    }

    pub fn was_called(&self) -> bool {
        self.called.load(Ordering::Relaxed)
    }
}
