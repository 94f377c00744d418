//! The server: rows, use cases over them, and the edges that reach these.

pub mod app;
pub mod clock;
pub mod grpc;
pub mod store;
pub mod wake;
