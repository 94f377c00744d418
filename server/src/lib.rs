//! The server: rows, use cases over them, and the edges that reach these.

pub mod app;
pub mod artifacts;
pub mod authority;
pub mod backup;
pub mod clock;
pub mod config;
pub mod crypto;
pub mod data;
pub mod files;
pub mod grpc;
pub mod live;
pub mod logs;
pub mod metrics;
mod recent;
pub mod secrets;
pub mod serve;
pub mod session;
pub mod storage;
pub mod store;
pub mod uploads;
pub mod wake;

pub use config::Config;
pub use serve::{Base, Running, serve, serve_with};
