//! The rows of a batch in memory, and what one transition does to them.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{
    Millis,
    build::BuildState,
    event::{Change, JobChange, Record},
    id::{AgentId, BuildId, JobId, LeaseId, ProjectId},
    job::{Event, State, Status},
    outcome::{FailureKind, Outcome},
    session::LeasePhase,
    trace::Trace,
};
use uuid::Uuid;

use super::{Effects, Moved, Opening, Refused, Transition};
use crate::store::{ArtifactRow, BuildRow, GroupRow, JobRow, LeaseRow, ProjectRow, Result, Tx};

/// Rows as they will be saved.
pub(super) struct Batch {
    pub(super) at: Millis,
    pub(super) builds: BTreeMap<BuildId, BuildRow>,
    /// States of the builds before the batch.
    pub(super) states: BTreeMap<BuildId, BuildState>,
    pub(super) jobs: BTreeMap<JobId, JobRow>,
    pub(super) dirty: BTreeSet<JobId>,
    pub(super) leases: BTreeMap<LeaseId, LeaseRow>,
    pub(super) dirty_leases: BTreeSet<LeaseId>,
    pub(super) given: Vec<LeaseRow>,
    pub(super) artifacts: BTreeMap<JobId, Vec<ArtifactRow>>,
    pub(super) affinities: BTreeMap<String, AgentId>,
    pub(super) records: Vec<Record>,
    /// Jobs that became done, and jobs that are not done any more: their dependents follow.
    pub(super) settled: Vec<JobId>,
    pub(super) reopened: Vec<JobId>,
    pub(super) groups: BTreeMap<Uuid, GroupRow>,
    /// Groups of which a member changed its state, and how many members joined the queue.
    pub(super) moved_groups: BTreeMap<Uuid, u32>,
    pub(super) projects: BTreeMap<ProjectId, ProjectRow>,
    /// Change of the open leases of each project.
    pub(super) running: BTreeMap<ProjectId, i64>,
    pub(super) effects: Effects,
}

impl Batch {
    /// Locks the builds, then reads what the transitions speak of.
    pub(super) async fn load(
        tx: &mut dyn Tx,
        transitions: &[Transition],
        at: Millis,
    ) -> Result<Self> {
        let builds: BTreeSet<_> = transitions.iter().map(|t| t.build).collect();
        let builds = tx.lock_builds(&builds.into_iter().collect::<Vec<_>>()).await?;
        let jobs: BTreeSet<_> = transitions.iter().map(|t| t.job).collect();
        let jobs = tx.jobs(&jobs.into_iter().collect::<Vec<_>>()).await?;
        let mut leases: BTreeSet<_> = jobs.iter().filter_map(|row| row.job.open_lease()).collect();
        leases.extend(transitions.iter().filter_map(|t| named_lease(&t.event)));
        let leases = match leases.len() {
            0 => vec![],
            _ => tx.leases(&leases.into_iter().collect::<Vec<_>>()).await?,
        };
        Ok(Self {
            at,
            states: builds.iter().map(|build| (build.id, build.state())).collect(),
            builds: builds.into_iter().map(|build| (build.id, build)).collect(),
            jobs: jobs.into_iter().map(|row| (row.job.id, row)).collect(),
            dirty: BTreeSet::new(),
            leases: leases.into_iter().map(|row| (row.id, row)).collect(),
            dirty_leases: BTreeSet::new(),
            given: vec![],
            artifacts: BTreeMap::new(),
            affinities: BTreeMap::new(),
            records: vec![],
            settled: vec![],
            reopened: vec![],
            groups: BTreeMap::new(),
            moved_groups: BTreeMap::new(),
            projects: BTreeMap::new(),
            running: BTreeMap::new(),
            effects: Effects::default(),
        })
    }

    /// Any transition but a lease.
    pub(super) fn turn(&mut self, transition: &Transition) -> Result<(), Refused> {
        let row = self.jobs.get(&transition.job).ok_or(Refused::Missing)?;
        if row.job.build != transition.build || !self.builds.contains_key(&transition.build) {
            return Err(Refused::Missing);
        }
        let mut row = row.clone();
        let before = row.job.clone();
        let (job, _) = before.clone().apply(transition.event.clone(), self.at)?;
        row.job = job;
        let lease = named_lease(&transition.event).or_else(|| before.open_lease());
        self.turn_lease(lease, transition, &mut row);
        let lease = lease.and_then(|lease| self.leases.get(&lease));
        let agent = lease.map(|lease| lease.agent);
        let was_open = before.open_lease().is_some();
        if was_open && row.job.open_lease().is_none() {
            *self.running.entry(row.project).or_default() -= 1;
            self.effects.freed.extend(lease.map(|lease| (lease.agent, lease.backend.clone())));
        }
        if was_open && !is_said_by_agent(&transition.event) {
            self.effects.agents.extend(agent);
        }
        let change = JobChange {
            agent,
            outcome: attempt_outcome(&transition.event, &row.job.state),
            reason: transition.reason.clone(),
            ..JobChange::of(&row.job, &row.name)
        };
        self.changed(before.status(), row, change);
        Ok(())
    }

    /// A lease, under the locks of the job's group and project.
    pub(super) fn give(&mut self, transition: &Transition) -> Result<(), Refused> {
        let row = self.jobs.get(&transition.job).ok_or(Refused::Missing)?;
        let Some(lease) = &transition.lease else { return Err(Refused::Missing) };
        if row.job.build != transition.build || !self.builds.contains_key(&transition.build) {
            return Err(Refused::Missing);
        }
        let mut row = row.clone();
        let (job, _) = row.job.clone().apply(transition.event.clone(), self.at)?;
        let project = self.projects.get(&row.project).ok_or(Refused::Missing)?;
        let running = i64::from(project.running)
            + self.running.get(&row.project).copied().unwrap_or_default();
        let full = project.max_running > 0 && running >= i64::from(project.max_running);
        if !row.claimable || project.paused || full {
            return Err(Refused::Barred);
        }
        let before = row.job.status();
        let since = opening(&row).not_before.max(row.job.queued_at);
        row.job = job;
        row.agent = Some(lease.agent);
        *self.running.entry(row.project).or_default() += 1;
        let lease = LeaseRow { attempt: row.job.attempts, ..lease.clone() };
        let traced = traced(&self.builds, &row);
        self.effects.moved.push(Moved { lease: lease.clone(), since, traced });
        self.given.push(lease.clone());
        let change = JobChange { agent: Some(lease.agent), ..JobChange::of(&row.job, &row.name) };
        self.changed(before, row, change);
        Ok(())
    }

    /// Counts, times and the event of a job that has changed.
    pub(super) fn changed(&mut self, before: Status, mut row: JobRow, change: JobChange) {
        let (id, after) = (row.job.id, row.job.status());
        match after {
            Status::Blocked | Status::Queued => {
                row.started_at = None;
                row.finished_at = None;
            }
            Status::Leased => {}
            Status::Running => row.started_at = row.started_at.or(Some(self.at)),
            Status::Succeeded | Status::Failed | Status::Cancelled => {
                row.finished_at = Some(self.at);
            }
        }
        if let Some(group) = row.group {
            let joined = u32::from(after == Status::Queued && before != Status::Queued);
            *self.moved_groups.entry(group).or_default() += joined;
        }
        if after != Status::Queued {
            row.claimable = false;
        } else if row.group.is_none() {
            row.claimable = true;
            self.effects.openings.push(opening(&row));
        }
        match (before.is_done(), after.is_done()) {
            (false, true) => self.settled.push(id),
            (true, false) => self.reopened.push(id),
            _ => {}
        }
        if let Some(build) = self.builds.get_mut(&row.job.build) {
            if before != after {
                build.counts.moved(before, after, row.allow_failure);
            }
            build.last_event += 1;
            self.records.push(Record {
                build: build.id,
                number: build.last_event,
                at: self.at,
                change: Change::Job(change),
            });
            self.effects.builds.insert(build.id);
        }
        self.dirty.insert(id);
        self.jobs.insert(id, row);
    }

    /// What the transition means for the row of the lease that it speaks of.
    fn turn_lease(&mut self, id: Option<LeaseId>, transition: &Transition, row: &mut JobRow) {
        let Some(lease) = id.and_then(|id| self.leases.get_mut(&id)) else { return };
        let since = lease.started_at.unwrap_or(lease.given_at);
        match &transition.event {
            Event::Start(_) => {
                lease.phase = LeasePhase::Running;
                lease.started_at = Some(self.at);
                row.returned = None;
            }
            Event::Return(_) => {
                lease.phase = LeasePhase::Void;
                lease.ended_at = Some(self.at);
                row.returned = Some(transition.reason.clone());
            }
            Event::Expire(_) => {
                lease.phase = LeasePhase::Void;
                lease.ended_at = Some(self.at);
            }
            Event::Finish(_, outcome) => {
                lease.phase = LeasePhase::Finished;
                lease.ended_at = Some(self.at);
                lease.outcome = Some(outcome.clone());
                self.affinities.insert(row.affinity.clone(), lease.agent);
                if let Some(report) = &transition.report {
                    lease.log_lengths.clone_from(&report.log_lengths);
                    let named = report.artifacts.iter().map(|artifact| ArtifactRow {
                        job: row.job.id,
                        build: row.job.build,
                        lease: lease.id,
                        artifact: artifact.clone(),
                    });
                    self.artifacts.insert(row.job.id, named.collect());
                }
            }
            Event::Cancel => {
                lease.cancelling = row.job.cancelling();
                self.dirty_leases.insert(lease.id);
                return;
            }
            _ => return,
        }
        self.dirty_leases.insert(lease.id);
        let traced = traced(&self.builds, row);
        self.effects.moved.push(Moved { lease: lease.clone(), since, traced });
    }
}

fn traced(builds: &BTreeMap<BuildId, BuildRow>, row: &JobRow) -> Option<(Trace, String)> {
    let place = builds.get(&row.job.build)?.trace()?;
    Some((place, row.name.clone()))
}

/// A queued job as something to offer.
pub(super) fn opening(row: &JobRow) -> Opening {
    let not_before = match row.job.state {
        State::Queued { not_before } => not_before,
        _ => 0,
    };
    Opening { class: row.class, affinity: row.affinity.clone(), not_before }
}

fn named_lease(event: &Event) -> Option<LeaseId> {
    match event {
        Event::Start(lease)
        | Event::Return(lease)
        | Event::Finish(lease, _)
        | Event::Expire(lease) => Some(*lease),
        _ => None,
    }
}

/// Its session knows already, and needs no hint to look at its leases again.
fn is_said_by_agent(event: &Event) -> bool {
    matches!(event, Event::Start(_) | Event::Return(_) | Event::Finish(..))
}

/// The job's outcome, or that of an attempt which is tried again.
fn attempt_outcome(event: &Event, state: &State) -> Option<Outcome> {
    match (state, event) {
        (State::Done(outcome), _) | (_, Event::Finish(_, outcome)) => Some(outcome.clone()),
        (_, Event::Expire(_)) => Some(Outcome::failed(FailureKind::Lost, "the agent was lost")),
        _ => None,
    }
}
