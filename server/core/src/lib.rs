//! The domain of Kiln, pure: no I/O, no clock, no randomness. Time and ids come in with the input.
//!
//! `spec` is what to build, `build` makes jobs of it, `job` is the state machine of each of them, `schedule` says
//! which agent gets which, `session` is the server's half of the protocol with agents, `event` is what is recorded,
//! `secret` is what must not be, `trace` is what is told of it elsewhere.

pub mod agent;
pub mod build;
pub mod event;
pub mod id;
pub mod job;
pub mod outcome;
pub mod schedule;
pub mod secret;
pub mod session;
pub mod spec;
pub mod trace;

/// Milliseconds since the Unix epoch.
pub type Millis = i64;
