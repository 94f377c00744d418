//! The agent: one session with the server, a supervisor for each job, backends behind one trait.

pub mod agent;
mod artifacts;
pub mod backend;
mod certificate;
pub mod cgroup;
mod checkout;
pub mod clock;
pub mod config;
pub mod connection;
mod executor;
pub mod identity;
pub mod journal;
pub mod lease;
pub mod mask;
mod profile;
mod pusher;
pub mod run;
mod spool;
pub mod supervisor;
mod trace;
pub mod workspace;

pub use agent::{Error, run, run_with};
pub use config::Config;
pub use connection::Address;
pub use identity::{Identity, enroll};
pub use supervisor::supervise;
