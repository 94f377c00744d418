//! The gRPC edge: one file a service, the mapping of errors, and who may call what.
//!
//! It reads messages, calls use cases and writes answers; it decides nothing and never sees the store.

mod admin;
mod agent;
mod artifact;
pub mod auth;
mod bucket;
mod build;
pub mod call;
mod log;
mod page;
mod project;
mod secret;
pub mod status;
mod view;
mod watch;

use kiln_core::spec::Violation;
use tonic::Status;

pub use admin::Admin;
pub use agent::Agents;
pub use artifact::ArtifactApi;
pub use build::Builds;
pub use log::LogApi;
pub use project::Projects;
pub use secret::Secrets;

/// Refuses a request for one field.
fn refuse(violation: Violation) -> Status {
    status::invalid(&[violation])
}
