//! What waits: the claim and the questions about the queue.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kiln_core::{
    Millis,
    id::{BuildId, ClassId, JobId, ProjectId},
    job::State as JobState,
    schedule::{Candidate, Class},
    session::LeasePhase,
};

use super::{
    super::{Census, Depth, JobRow, PROJECTS_OF_A_CLAIM, ProjectRow, QueueRow, Wait},
    State, is_queued,
};

/// The order in which jobs of equal use are taken.
type Rank = (Reverse<i32>, Millis, JobId);

fn rank(row: &JobRow) -> Rank {
    (Reverse(row.priority), row.job.queued_at, row.job.id)
}

fn not_before(row: &JobRow) -> Option<Millis> {
    match row.job.state {
        JobState::Queued { not_before } => Some(not_before),
        _ => None,
    }
}

fn claimable(state: &State) -> impl Iterator<Item = &JobRow> {
    state.jobs.values().map(Arc::as_ref).filter(|row| row.claimable)
}

pub(super) fn candidates(
    state: &State,
    classes: &[ClassId],
    each: u32,
    now: Millis,
) -> Vec<(Candidate, BuildId)> {
    let classes: BTreeSet<_> = classes.iter().collect();
    let mut queues: BTreeMap<ProjectId, BTreeMap<Rank, &JobRow>> = BTreeMap::new();
    let ready = claimable(state).filter(|row| classes.contains(&row.class) && row.job.is_due(now));
    for row in ready {
        queues.entry(row.project).or_default().insert(rank(row), row);
    }
    let mut projects: Vec<&ProjectRow> = queues
        .keys()
        .filter_map(|id| state.projects.get(id).map(Arc::as_ref))
        .filter(|row| !row.paused && (row.max_running == 0 || row.running < row.max_running))
        .collect();
    projects.sort_by_key(|row| {
        (u64::from(row.running) * 1_000_000 / u64::from(row.weight.max(1)), row.id)
    });
    projects
        .into_iter()
        .take(PROJECTS_OF_A_CLAIM)
        .flat_map(|project| queues[&project.id].values().take(each as usize))
        .map(|row| (candidate(state, row), row.job.build))
        .collect()
}

fn candidate(state: &State, row: &JobRow) -> Candidate {
    Candidate {
        job: row.job.id,
        project: row.project,
        backend: row.backend.clone(),
        priority: row.priority,
        queued_at: row.job.queued_at,
        preferred: state.affinities.get(&row.affinity).map(|affinity| affinity.0),
    }
}

pub(super) fn waiting_classes(state: &State) -> BTreeMap<ClassId, Class> {
    let ids: BTreeSet<ClassId> = claimable(state).map(|row| row.class).collect();
    ids.into_iter().filter_map(|id| Some((id, super::row(&state.classes, &id)?))).collect()
}

pub(super) fn by_project(state: &State) -> Vec<QueueRow> {
    let mut rows: BTreeMap<ProjectId, QueueRow> = BTreeMap::new();
    let empty = |project| QueueRow { project, queued: 0, running: 0, oldest: None };
    for job in state.jobs.values().filter(|job| is_queued(job)) {
        let row = rows.entry(job.project).or_insert_with(|| empty(job.project));
        let queued_at = job.job.queued_at;
        row.queued += 1;
        row.oldest = Some(row.oldest.map_or(queued_at, |oldest| oldest.min(queued_at)));
    }
    for lease in state.leases.values().filter(|lease| lease.phase.is_open()) {
        rows.entry(lease.project).or_insert_with(|| empty(lease.project)).running += 1;
    }
    rows.into_values().collect()
}

pub(super) fn census(state: &State, now: Millis) -> Census {
    let mut queue: BTreeMap<(ProjectId, Wait), Depth> = BTreeMap::new();
    for row in state.jobs.values().filter(|row| is_queued(row)) {
        let wait = match row.claimable {
            false => Wait::Group,
            true if row.job.is_due(now) => Wait::Slot,
            true => Wait::Backoff,
        };
        let (project, oldest) = (row.project, row.job.queued_at);
        let empty = || Depth { project, wait, jobs: 0, oldest };
        let depth = queue.entry((project, wait)).or_insert_with(empty);
        depth.jobs += 1;
        depth.oldest = depth.oldest.min(oldest);
    }
    let leases = |phase| state.leases.values().filter(|row| row.phase == phase).count() as u64;
    Census {
        queue: queue.into_values().collect(),
        leased: leases(LeasePhase::Leased),
        running: leases(LeasePhase::Running),
        sessions: state.sessions.values().filter(|row| row.open).count() as u64,
    }
}

pub(super) fn oldest(state: &State, limit: u32) -> Vec<JobRow> {
    let mut rows: Vec<_> = state.jobs.values().filter(|row| is_queued(row)).collect();
    rows.sort_by_key(|row| (row.job.queued_at, row.job.id));
    rows.into_iter().take(limit as usize).map(|row| (**row).clone()).collect()
}

pub(super) fn ahead_of(state: &State, job: &JobRow) -> u32 {
    let ahead = claimable(state).filter(|row| row.class == job.class && rank(row) < rank(job));
    u32::try_from(ahead.count()).unwrap_or(u32::MAX)
}

pub(super) fn overdue(state: &State, now: Millis, limit: u32) -> Vec<(BuildId, JobId)> {
    let end = |row: &JobRow| row.job.queued_at.saturating_add(row.job.queue_timeout_ms);
    let mut rows: Vec<_> =
        state.jobs.values().filter(|row| is_queued(row) && end(row) <= now).collect();
    rows.sort_by_key(|row| (end(row), row.job.id));
    rows.into_iter().take(limit as usize).map(|row| (row.job.build, row.job.id)).collect()
}

pub(super) fn next_not_before(state: &State, now: Millis) -> Option<Millis> {
    claimable(state).filter_map(not_before).filter(|time| *time > now).min()
}
