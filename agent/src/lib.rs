//! The agent: one session with the server, a supervisor for each job, backends behind one trait.

pub mod backend;
pub mod cgroup;
pub mod clock;
pub mod journal;
pub mod lease;
pub mod mask;
pub mod run;
pub mod supervisor;
pub mod workspace;

pub use supervisor::supervise;
