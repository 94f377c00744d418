//! What happens in a world, step by step. A step carries its own chance, so that any of them can be left out and the
//! others mean the same: that is what makes a story that can be shortened.

use crate::chance::Chance;

/// Steps with faults, before the world heals.
const STEPS: usize = 400;

/// Something that can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Submit,
    UserActs,
    Connect,
    DeliverUp,
    DeliverDown,
    Claim,
    Announce,
    Finish,
    Seal,
    LookAtRows,
    Heartbeat,
    TimePasses,
    Cut,
    Crash,
    Copy,
    RestartServer,
    CommitFails,
    ClockJumps,
}

/// How often each happens, in 1,000 steps.
const WEIGHTS: [(Action, usize); 18] = [
    (Action::Submit, 40),
    (Action::UserActs, 20),
    (Action::Connect, 100),
    (Action::DeliverUp, 200),
    (Action::DeliverDown, 160),
    (Action::Claim, 100),
    (Action::Announce, 60),
    (Action::Finish, 80),
    (Action::Seal, 40),
    (Action::LookAtRows, 40),
    (Action::Heartbeat, 40),
    (Action::TimePasses, 50),
    (Action::Cut, 20),
    (Action::Crash, 17),
    (Action::Copy, 3),
    (Action::RestartServer, 10),
    (Action::CommitFails, 10),
    (Action::ClockJumps, 10),
];

/// One of them, to one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub action: Action,
    /// Which machine, by its remainder.
    pub machine: usize,
    /// Decides whatever is left to decide.
    pub chance: u64,
}

/// All that happens by this seed.
pub(super) fn plan(seed: u64) -> Vec<Step> {
    let mut chance = Chance::new(seed);
    (0..STEPS)
        .map(|_| Step {
            action: action(chance.below(1_000)),
            machine: chance.below(1 << 16),
            chance: chance.next(),
        })
        .collect()
}

fn action(mut at: usize) -> Action {
    for (action, weight) in WEIGHTS {
        match at.checked_sub(weight) {
            Some(rest) => at = rest,
            None => return action,
        }
    }
    Action::TimePasses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_of_a_thousand() {
        assert_eq!(WEIGHTS.iter().map(|(_, weight)| weight).sum::<usize>(), 1_000);
        assert_eq!((action(0), action(999)), (Action::Submit, Action::ClockJumps));
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }
}
