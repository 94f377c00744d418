//! The gRPC edge: one file a service, the mapping of errors, and who may call what.
//!
//! It reads messages, calls use cases and writes answers; it decides nothing and never sees the store.

pub mod auth;
pub mod status;
