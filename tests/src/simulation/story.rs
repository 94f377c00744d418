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
        write!(f, "seed {}: {}", self.seed, short(&self.message))
    }
}

/// Ids are counted from one in a simulated world: their zeros say nothing.
pub(super) fn short(text: &str) -> String {
    let mut parts = text.split('_');
    let mut told = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_hexdigit).count();
        let zeros = part.bytes().take_while(|byte| *byte == b'0').count();
        told.push('_');
        told.push_str(if digits == 32 { &part[zeros.min(31)..] } else { part });
    }
    told
}

/// Adds a line to the story, where someone will read it.
macro_rules! tell {
    ($world:expr, $($text:tt)*) => {
        if $world.telling {
            let line = crate::simulation::story::short(&format!($($text)*));
            $world.story.push(format!("{:>7} ms  {line}", $world.clock.elapsed_ms()));
        }
    };
}
pub(super) use tell;

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_told_without_their_zeros() {
        let id = format!("lse_{:032x}", 0x2a);
        assert_eq!(
            super::short(&format!("[{id}] {id} not_one 0_0")),
            "[lse_2a] lse_2a not_one 0_0"
        );
    }
}
