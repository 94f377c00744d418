//! Secrets and grants.

use std::sync::Arc;

use kiln_core::{
    Millis,
    id::{BuildId, LeaseId, ProjectId},
};

use super::{
    super::{Error, GrantRow, Result, SecretRow},
    State, put, row,
};

fn is_current(row: &SecretRow, project: ProjectId) -> bool {
    row.project == project && row.ended_at.is_none()
}

/// Those of a project by name, without their values.
pub(super) fn of_project(state: &State, project: ProjectId) -> Vec<SecretRow> {
    let rows = state.secrets.values().filter(|row| is_current(row, project) && row.build.is_none());
    let heads = rows.map(|row| SecretRow { sealed: vec![], ..SecretRow::clone(row) });
    let mut heads: Vec<SecretRow> = heads.collect();
    heads.sort_by(|a, b| a.name.cmp(&b.name));
    heads
}

pub(super) fn current(
    state: &State,
    project: ProjectId,
    build: Option<BuildId>,
    names: &[String],
) -> Vec<SecretRow> {
    let rows = state.secrets.values().filter(|row| {
        let scope = row.build.is_none() || row.build == build;
        is_current(row, project) && scope && names.contains(&row.name)
    });
    rows.map(|row| SecretRow::clone(row)).collect()
}

pub(super) fn insert(state: &mut State, rows: &[SecretRow]) -> Result<()> {
    for new in rows {
        let taken = state.secrets.values().any(|old| {
            is_current(old, new.project) && old.build == new.build && old.name == new.name
        });
        if taken {
            return Err(Error::Exists { what: "secret", name: new.name.clone() });
        }
        put(&mut state.secrets, new.id, new.clone());
    }
    Ok(())
}

pub(super) fn save_sealed(state: &mut State, rows: &[SecretRow]) {
    for new in rows {
        if let Some(old) = row(&state.secrets, &new.id) {
            let (key, sealed) = (new.key.clone(), new.sealed.clone());
            put(&mut state.secrets, new.id, SecretRow { key, sealed, ..old });
        }
    }
}

/// Ends current ones that are meant.
pub(super) fn end(state: &mut State, at: Millis, is_meant: impl Fn(&SecretRow) -> bool) {
    let wanted = state.secrets.values().filter(|row| row.ended_at.is_none() && is_meant(row));
    let ended: Vec<SecretRow> =
        wanted.map(|row| SecretRow { ended_at: Some(at), ..SecretRow::clone(row) }).collect();
    for row in ended {
        put(&mut state.secrets, row.id, row);
    }
}

/// Builds that are done and have secrets yet.
pub(super) fn done_builds(state: &State, limit: u32) -> Vec<BuildId> {
    let mut builds: Vec<BuildId> = state
        .secrets
        .values()
        .filter(|row| row.ended_at.is_none())
        .filter_map(|row| row.build)
        .filter(|id| state.builds.get(id).is_some_and(|build| build.finished_at.is_some()))
        .collect();
    builds.sort_unstable();
    builds.dedup();
    builds.truncate(limit as usize);
    builds
}

/// Deletes what was replaced or deleted and no lease was given.
pub(super) fn delete_ended(state: &mut State) -> u64 {
    let before = state.secrets.len();
    let grants = Arc::clone(&state.grants);
    Arc::make_mut(&mut state.secrets).retain(|id, row| {
        row.ended_at.is_none() || grants.values().any(|grant| grant.secret == *id)
    });
    (before - state.secrets.len()) as u64
}

pub(super) fn grant(state: &mut State, rows: &[GrantRow]) {
    for row in rows {
        let key = (row.lease, row.name.clone());
        if !state.grants.contains_key(&key) {
            put(&mut state.grants, key, row.clone());
        }
    }
}

/// The values that these leases were given, by lease and name.
pub(super) fn granted(state: &State, leases: &[LeaseId]) -> Vec<(LeaseId, SecretRow)> {
    let grants = state.grants.values().filter(|grant| leases.contains(&grant.lease));
    grants.filter_map(|grant| Some((grant.lease, row(&state.secrets, &grant.secret)?))).collect()
}

/// Leases that were given secrets and hold their job no more.
pub(super) fn of_ended_leases(state: &State, after: Option<LeaseId>, limit: u32) -> Vec<LeaseId> {
    let open = |lease: &LeaseId| state.leases.get(lease).is_some_and(|row| row.phase.is_open());
    let leases = state.grants.keys().map(|(lease, _)| *lease);
    let leases = leases.filter(|lease| after.is_none_or(|after| *lease > after) && !open(lease));
    let mut leases: Vec<LeaseId> = leases.collect();
    leases.dedup();
    leases.truncate(limit as usize);
    leases
}

pub(super) fn delete_grants(state: &mut State, leases: &[LeaseId]) {
    Arc::make_mut(&mut state.grants).retain(|(lease, _), _| !leases.contains(lease));
}
