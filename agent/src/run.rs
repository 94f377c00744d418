//! What the world offers to a backend while it runs one job.

/// One job's view of the world.
#[derive(Debug)]
pub struct Run {}
