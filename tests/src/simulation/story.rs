//! What happened, for a person who reads a failed seed.

use std::fmt;

/// What a seed went through.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    pub builds: usize,
    pub leases: usize,
    pub faults: usize,
}

/// A seed that broke a rule.
#[derive(Debug, Clone)]
pub struct Broken {
    pub seed: u64,
    pub message: String,
    pub story: Vec<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.story {
            writeln!(f, "  {line}")?;
        }
        write!(f, "seed {}: {}", self.seed, self.message)
    }
}
