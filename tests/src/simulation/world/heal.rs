//! The end of all faults.

use kiln_core::Millis;

use super::{Chance, MACHINES, World, tell};

/// What passes between two rounds in which everyone says all that there is to say.
const HEALING_STEP_MS: Millis = 8_000;

impl World {
    /// No more faults: everything is delivered, every process ends, until all builds are done.
    pub(crate) async fn heal(&mut self, seed: u64) -> Result<(), String> {
        tell!(self, "the world heals");
        self.healing = true;
        self.chance = Chance::new(seed);
        self.memory.fail_next_commit(0);
        // Someone finds the copies, and turns them off.
        let now = self.now();
        for copy in self.machines.iter_mut().skip(MACHINES) {
            copy.cut(now);
            copy.crash(true);
            copy.retired = true;
        }
        for _ in 0..400 {
            for machine in 0..MACHINES {
                self.connect(machine);
                while self.link(machine).is_some_and(|link| !link.up.is_empty()) {
                    self.deliver_up(machine).await?;
                }
                self.look_at_rows(machine).await?;
                self.claim(machine).await?;
                while self.link(machine).is_some_and(|link| !link.down.is_empty()) {
                    self.deliver_down(machine);
                }
                self.announce(machine);
                for _ in 0..3 {
                    self.finish(machine);
                    self.seal(machine);
                }
                self.heartbeat(machine);
            }
            self.pass(HEALING_STEP_MS).await;
            if self.unfinished().await?.is_empty() {
                return Ok(());
            }
        }
        Err(format!(
            "the world healed, but these did not end: {}",
            self.unfinished().await?.join("; ")
        ))
    }
}
