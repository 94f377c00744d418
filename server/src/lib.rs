//! The server: rows, use cases over them, and the edges that reach these.

pub mod app;
pub mod clock;
pub mod files;
pub mod grpc;
pub mod session;
pub mod store;
pub mod wake;
