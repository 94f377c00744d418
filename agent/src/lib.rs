//! The agent: one session with the server, a supervisor for each job, backends behind one trait.

pub mod backend;
pub mod cgroup;
pub mod clock;
pub mod lease;
pub mod run;
pub mod supervisor;

pub use supervisor::supervise;
