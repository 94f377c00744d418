//! What retention removes.

use std::{collections::BTreeSet, sync::Arc};

use kiln_core::{
    Millis,
    id::{BuildId, JobId, LeaseId},
};

use super::State;

pub(super) fn leases_of(state: &State, build: BuildId) -> Vec<LeaseId> {
    let leases = state.leases.values().filter(|lease| lease.build == build);
    leases.map(|lease| lease.id).collect()
}

fn is_due(state: &State, id: BuildId, before: Millis) -> bool {
    let ended = state.builds.get(&id).and_then(|build| build.finished_at);
    let open = |lease: &LeaseId| state.leases.get(lease).is_some_and(|row| row.phase.is_open());
    ended.is_some_and(|ended| ended < before) && !leases_of(state, id).iter().any(open)
}

pub(super) fn ended_builds(state: &State, before: Millis, limit: u32) -> Vec<BuildId> {
    let mut due: Vec<_> =
        state.builds.values().filter(|build| is_due(state, build.id, before)).collect();
    due.sort_by_key(|build| (build.created_at, build.id));
    due.into_iter().take(limit as usize).map(|build| build.id).collect()
}

pub(super) fn delete_build(state: &mut State, id: BuildId, before: Millis) -> bool {
    if !is_due(state, id, before) {
        return false;
    }
    let leases: BTreeSet<LeaseId> = leases_of(state, id).into_iter().collect();
    let jobs: BTreeSet<JobId> = state.jobs_of(id).iter().map(|job| job.job.id).collect();
    Arc::make_mut(&mut state.builds).remove(&id);
    Arc::make_mut(&mut state.keys).retain(|_, build| **build != id);
    Arc::make_mut(&mut state.jobs).retain(|job, _| !jobs.contains(job));
    Arc::make_mut(&mut state.specs).retain(|job, _| !jobs.contains(job));
    Arc::make_mut(&mut state.artifacts).retain(|job, _| !jobs.contains(job));
    Arc::make_mut(&mut state.build_jobs).remove(&id);
    Arc::make_mut(&mut state.needs).remove(&id);
    Arc::make_mut(&mut state.events).remove(&id);
    Arc::make_mut(&mut state.leases).retain(|lease, _| !leases.contains(lease));
    Arc::make_mut(&mut state.grants).retain(|(lease, _), _| !leases.contains(lease));
    Arc::make_mut(&mut state.secrets).retain(|_, secret| secret.build != Some(id));
    true
}

pub(super) fn delete_audit(state: &mut State, before: Millis, limit: u32) -> u64 {
    let last = state.audit.last_key_value().map(|(number, _)| *number);
    let due: Vec<i64> = state
        .audit
        .iter()
        .take(limit as usize)
        .take_while(|(number, row)| row.at < before && Some(**number) != last)
        .map(|(number, _)| *number)
        .collect();
    Arc::make_mut(&mut state.audit).retain(|number, _| !due.contains(number));
    due.len() as u64
}
