//! What processes do on a machine, and what its agent learns of it.

use kiln_agent::lease::{EntryState, Input as AgentInput};
use kiln_core::outcome::{FailureKind, Outcome};

use super::{World, tell};

impl World {
    /// Now and then the agent dies between two of its outputs.
    pub(super) fn crash_after(&mut self) -> Option<usize> {
        if self.healing {
            return None;
        }
        let crash = self.chance.percent(2).then(|| self.chance.below(3));
        self.faults += usize::from(crash.is_some());
        crash
    }

    pub(super) fn announce(&mut self, machine: usize) {
        let now = self.now();
        let crash = self.crash_after();
        let machine = &mut self.machines[machine];
        let taken: Vec<_> = machine
            .leases
            .entries()
            .filter(|entry| entry.state == EntryState::Taken)
            .map(|entry| entry.assignment.lease)
            .filter(|lease| machine.processes.contains_key(lease))
            .collect();
        if let (true, Some(lease)) = (machine.up, self.chance.pick(&taken)) {
            machine.announce(lease, now, crash);
        }
    }

    pub(super) fn finish(&mut self, machine: usize) {
        let now = self.now();
        let crash = self.crash_after();
        let leases: Vec<_> = self.machines[machine].processes.keys().copied().collect();
        let (true, Some(lease)) = (self.machines[machine].up, self.chance.pick(&leases)) else {
            return;
        };
        let cancelled = self.machines[machine].processes[&lease].cancelled;
        let outcome = match self.chance.below(10) {
            _ if cancelled => Outcome::cancelled("on request"),
            0 => Outcome::failed(FailureKind::User, "exit code 1"),
            1 => Outcome::failed(FailureKind::Infra, "disk"),
            _ => Outcome::Succeeded,
        };
        tell!(self, "process {lease} on machine {machine} ends: {outcome:?}");
        self.machines[machine].finish(lease, outcome, now, crash);
    }

    pub(super) fn seal(&mut self, machine: usize) {
        let now = self.now();
        let machine = &mut self.machines[machine];
        let finished: Vec<_> = machine
            .leases
            .entries()
            .filter(|entry| matches!(entry.state, EntryState::Finished(_)))
            .map(|entry| entry.assignment.lease)
            .collect();
        if let (true, Some(lease)) =
            (machine.up && machine.leases.is_connected(), self.chance.pick(&finished))
        {
            machine.apply(AgentInput::LogSealed(lease), now, None);
        }
    }
}
