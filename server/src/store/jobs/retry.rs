//! Which jobs a manual retry opens again.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{
    id::{BuildId, JobId},
    job::{Event, Rejected, Status},
};

use super::Transition;
use crate::store::{JobRow, Result, Tx};

/// What a retry comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Retry {
    /// Open these jobs again, targets and dependents; those are none where all had been opened before.
    Open(Vec<Reopening>),
    /// A target can't be opened.
    Refused { target: String, why: Rejected },
    /// A target needs a job that did not end well and is not opened with it.
    NeedUnsuccessful { target: String, need: String },
    /// A target is no job of the build.
    Missing(JobId),
}

/// A job that is opened again from a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reopening {
    pub job: JobId,
    pub round: u32,
    pub blocked: bool,
}

impl Reopening {
    pub fn transition(self, build: BuildId) -> Transition {
        let event = Event::Retry { round: self.round, blocked: self.blocked };
        Transition::new(build, self.job, event).because("retried on request")
    }
}

/// Reads a locked build and decides. No target means all that did not succeed.
pub async fn plan_retry(
    tx: &mut dyn Tx,
    build: BuildId,
    targets: &[(JobId, Option<u32>)],
) -> Result<Retry> {
    let rows: BTreeMap<JobId, JobRow> =
        tx.jobs_of(build).await?.into_iter().map(|row| (row.job.id, row)).collect();
    let edges = tx.edges(build).await?;
    Ok(decide(&rows, &edges, targets))
}

fn decide(
    rows: &BTreeMap<JobId, JobRow>,
    edges: &[(JobId, JobId)],
    targets: &[(JobId, Option<u32>)],
) -> Retry {
    let mut needs: BTreeMap<JobId, Vec<JobId>> = BTreeMap::new();
    let mut dependents: BTreeMap<JobId, Vec<JobId>> = BTreeMap::new();
    for &(job, needed) in edges {
        needs.entry(job).or_default().push(needed);
        dependents.entry(needed).or_default().push(job);
    }
    let wanted = match choose(rows, targets) {
        Ok(wanted) => wanted,
        Err(refused) => return refused,
    };
    let open = spread(rows, &needs, &dependents, &wanted);
    for target in &wanted {
        let unsuccessful = needs
            .get(target)
            .into_iter()
            .flatten()
            .find(|need| !open.contains(need) && rows.get(need).is_some_and(bars_dependents));
        if let (Some(target), Some(need)) =
            (rows.get(target), unsuccessful.and_then(|need| rows.get(need)))
        {
            let (target, need) = (target.name.clone(), need.name.clone());
            return Retry::NeedUnsuccessful { target, need };
        }
    }
    let blocked = |job: &JobId| {
        needs.get(job).into_iter().flatten().any(|need| {
            open.contains(need) || rows.get(need).is_some_and(|row| !row.job.status().is_done())
        })
    };
    Retry::Open(
        open.iter()
            .filter_map(|id| rows.get(id))
            .map(|row| Reopening {
                job: row.job.id,
                round: row.job.round,
                blocked: blocked(&row.job.id),
            })
            .collect(),
    )
}

/// The targets that are to be opened; one that was opened from the round that the caller saw is done already.
fn choose(
    rows: &BTreeMap<JobId, JobRow>,
    targets: &[(JobId, Option<u32>)],
) -> Result<BTreeSet<JobId>, Retry> {
    if targets.is_empty() {
        let all = rows.values().filter(|row| is_unsuccessful(row));
        return Ok(all.map(|row| row.job.id).collect());
    }
    let mut wanted = BTreeSet::new();
    for &(id, round) in targets {
        let Some(row) = rows.get(&id) else { return Err(Retry::Missing(id)) };
        let event = Event::Retry { round: round.unwrap_or(row.job.round), blocked: false };
        match row.job.clone().apply(event, 0) {
            Ok(_) => {
                wanted.insert(id);
            }
            Err(Rejected::Repeated) => {}
            Err(why) => return Err(Retry::Refused { target: row.name.clone(), why }),
        }
    }
    Ok(wanted)
}

/// The targets and their unsuccessful dependents, as far as all unsuccessful needs of those are opened too.
fn spread(
    rows: &BTreeMap<JobId, JobRow>,
    needs: &BTreeMap<JobId, Vec<JobId>>,
    dependents: &BTreeMap<JobId, Vec<JobId>>,
    wanted: &BTreeSet<JobId>,
) -> BTreeSet<JobId> {
    let mut open = wanted.clone();
    let mut work: Vec<JobId> = wanted.iter().copied().collect();
    while let Some(needed) = work.pop() {
        for dependent in dependents.get(&needed).into_iter().flatten() {
            let Some(row) = rows.get(dependent) else { continue };
            let ready = needs.get(dependent).into_iter().flatten().all(|need| {
                open.contains(need) || rows.get(need).is_none_or(|row| !bars_dependents(row))
            });
            if ready && is_unsuccessful(row) && open.insert(*dependent) {
                work.push(*dependent);
            }
        }
    }
    open
}

fn is_unsuccessful(row: &JobRow) -> bool {
    matches!(row.job.status(), Status::Failed | Status::Cancelled)
}

/// Its dependents would be skipped.
fn bars_dependents(row: &JobRow) -> bool {
    row.job.status() == Status::Cancelled
        || (row.job.status() == Status::Failed && !row.allow_failure)
}
