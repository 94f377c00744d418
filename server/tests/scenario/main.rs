//! A whole server over real connections, with agents that are driven by hand.

#![expect(clippy::unwrap_used, reason = "it is all tests")]

mod access;
mod agents;
mod builds;
mod life;
mod limits;
mod matrix;
mod metrics;
mod older;
mod secrets;
mod watch;
mod world;
