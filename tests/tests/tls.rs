//! TLS between real processes: a server with its own authority or with files, clients that trust it or have no reason
//! to, agents with and without their certificate. `openssl` and `curl` are the strangers.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may fail"
)]

#[path = "tls/agents.rs"]
mod agents;
#[path = "tls/farm.rs"]
mod farm;
#[allow(dead_code, reason = "another room uses the rest")]
#[path = "rig_real/process.rs"]
mod process;
#[path = "tls/server.rs"]
mod server;
