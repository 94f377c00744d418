//! The later locks of a batch, its writes, and who of a concurrency group goes first.

use std::collections::BTreeSet;

use kiln_core::{
    event::{Change, Record},
    job::Status,
};
use uuid::Uuid;

use super::{
    Effects, Transition,
    batch::{Batch, opening},
};
use crate::store::{BuildRow, Error, GroupRow, JobRow, LeaseRow, ProjectRow, Result, Tx};

impl Batch {
    /// A group's lock guards the `claimable` of its members in all builds, so those are read again under it.
    pub(super) async fn lock_groups(
        &mut self,
        tx: &mut dyn Tx,
        transitions: &[Transition],
    ) -> Result<()> {
        let named = transitions.iter().map(|transition| transition.job);
        let touched: BTreeSet<_> = self.dirty.iter().copied().chain(named).collect();
        let members: Vec<_> = touched
            .iter()
            .filter_map(|id| self.jobs.get(id))
            .filter_map(|row| row.group.map(|group| (group, row.job.id)))
            .collect();
        if members.is_empty() {
            return Ok(());
        }
        let groups: BTreeSet<Uuid> = members.iter().map(|(group, _)| *group).collect();
        let groups = tx.lock_groups(&groups.into_iter().collect::<Vec<_>>()).await?;
        self.groups = groups.into_iter().map(|group| (group.id, group)).collect();
        let members: Vec<_> = members.into_iter().map(|(_, job)| job).collect();
        for fresh in tx.jobs(&members).await? {
            if let Some(row) = self.jobs.get_mut(&fresh.job.id) {
                row.version = fresh.version;
                row.claimable = fresh.claimable && row.job.status() == Status::Queued;
            }
        }
        Ok(())
    }

    pub(super) async fn lock_projects(
        &mut self,
        tx: &mut dyn Tx,
        transitions: &[Transition],
    ) -> Result<()> {
        let mut ids: BTreeSet<_> =
            self.running.iter().filter(|(_, change)| **change != 0).map(|(id, _)| *id).collect();
        let leased = transitions.iter().filter(|transition| transition.lease.is_some());
        ids.extend(leased.filter_map(|t| self.jobs.get(&t.job)).map(|row| row.project));
        if !ids.is_empty() {
            let rows = tx.lock_projects(&ids.into_iter().collect::<Vec<_>>()).await?;
            self.projects = rows.into_iter().map(|row| (row.id, row)).collect();
        }
        Ok(())
    }

    pub(super) async fn save(mut self, tx: &mut dyn Tx) -> Result<Effects> {
        let rows: Vec<JobRow> =
            self.dirty.iter().filter_map(|id| self.jobs.get(id)).cloned().collect();
        save_jobs(tx, &rows).await?;
        self.save_leases(tx).await?;
        self.save_projects(tx).await?;
        for (group, joined) in &self.moved_groups {
            if let Some(group) = self.groups.get(group) {
                let openings = rebalance(tx, group, *joined).await?;
                self.effects.openings.extend(openings);
            }
        }
        self.save_builds(tx).await?;
        Ok(self.effects)
    }

    async fn save_leases(&mut self, tx: &mut dyn Tx) -> Result<()> {
        if !self.given.is_empty() {
            tx.insert_leases(&self.given).await?;
        }
        let leases: Vec<LeaseRow> =
            self.dirty_leases.iter().filter_map(|id| self.leases.get(id)).cloned().collect();
        if !leases.is_empty() {
            tx.save_leases(&leases).await?;
        }
        if !self.artifacts.is_empty() {
            let jobs: Vec<_> = self.artifacts.keys().copied().collect();
            let rows: Vec<_> =
                std::mem::take(&mut self.artifacts).into_values().flatten().collect();
            tx.put_artifacts(&jobs, &rows).await?;
        }
        if !self.affinities.is_empty() {
            let warm = std::mem::take(&mut self.affinities);
            let rows: Vec<_> =
                warm.iter().map(|(affinity, agent)| (affinity.clone(), *agent, self.at)).collect();
            tx.save_affinities(&rows).await?;
            self.effects.warm.extend(warm);
        }
        Ok(())
    }

    async fn save_projects(&mut self, tx: &mut dyn Tx) -> Result<()> {
        let mut changed: Vec<ProjectRow> = vec![];
        for (id, change) in self.running.iter().filter(|(_, change)| **change != 0) {
            if let Some(project) = self.projects.get_mut(id) {
                let running = (i64::from(project.running) + change).max(0);
                project.running = u32::try_from(running).unwrap_or(u32::MAX);
                changed.push(project.clone());
            }
        }
        if changed.is_empty() { Ok(()) } else { tx.save_projects(&changed).await }
    }

    /// The last of the writes: a build that ended says so in its last event.
    async fn save_builds(&mut self, tx: &mut dyn Tx) -> Result<()> {
        let mut changed: Vec<BuildRow> = vec![];
        for id in &self.effects.builds {
            let Some(build) = self.builds.get_mut(id) else { continue };
            let state = build.state();
            build.finished_at = state.is_done().then_some(build.finished_at.unwrap_or(self.at));
            if self.states.get(id) != Some(&state) {
                build.last_event += 1;
                self.records.push(Record {
                    build: build.id,
                    number: build.last_event,
                    at: self.at,
                    change: Change::Build { state },
                });
            }
            changed.push(build.clone());
        }
        if !self.records.is_empty() {
            tx.append_events(&self.records).await?;
        }
        if changed.is_empty() { Ok(()) } else { tx.save_builds(&changed).await }
    }
}

/// A row that changed meanwhile spoils the counts of the whole batch, so all of it is done again.
async fn save_jobs(tx: &mut dyn Tx, rows: &[JobRow]) -> Result<()> {
    if rows.is_empty() || tx.save_jobs(rows).await?.is_empty() {
        Ok(())
    } else {
        Err(Error::Conflict)
    }
}

/// Makes the first queued members of a locked group claimable, as many as its limit has room for, in the order of
/// their submission. `joined`: how many may have come into the queue before those that are claimable now.
pub async fn rebalance(
    tx: &mut dyn Tx,
    group: &GroupRow,
    joined: u32,
) -> Result<Vec<super::Opening>> {
    let members = tx.group_members(group.id, group.limit.saturating_add(joined)).await?;
    let (queued, open): (Vec<_>, Vec<_>) =
        members.into_iter().partition(|row| row.job.status() == Status::Queued);
    let open = u32::try_from(open.len()).unwrap_or(u32::MAX);
    let room = group.limit.saturating_sub(open) as usize;
    let mut changed = vec![];
    let mut openings = vec![];
    for (place, mut row) in queued.into_iter().enumerate() {
        let claimable = place < room;
        if row.claimable != claimable {
            row.claimable = claimable;
            if claimable {
                openings.push(opening(&row));
            }
            changed.push(row);
        }
    }
    save_jobs(tx, &changed).await?;
    Ok(openings)
}
