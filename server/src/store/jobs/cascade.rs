//! Dependents follow: open needs are counted down, jobs unblocked or skipped, level by level without recursion.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{
    event::JobChange,
    id::{BuildId, JobId},
    job::{Event, SkipReason, Status},
};

use super::batch::Batch;
use crate::store::{JobRow, Result, Tx};

/// Levels that are asked for one by one. A deeper cascade reads the graph of its build once instead.
const SHALLOW: u32 = 3;

type Graph = BTreeMap<JobId, Vec<JobId>>;

/// Until nothing follows any more.
pub(super) async fn follow(batch: &mut Batch, tx: &mut dyn Tx) -> Result<()> {
    let mut graphs: BTreeMap<BuildId, Graph> = BTreeMap::new();
    for level in 0_u32.. {
        let settled = std::mem::take(&mut batch.settled);
        let reopened = std::mem::take(&mut batch.reopened);
        if settled.is_empty() && reopened.is_empty() {
            break;
        }
        let needed: Vec<JobId> = settled.iter().chain(&reopened).copied().collect();
        let edges = if level < SHALLOW {
            ask(batch, tx, &needed).await?
        } else {
            look_up(batch, tx, &mut graphs, &needed).await?
        };
        let empty = vec![];
        for needed in settled {
            for dependent in edges.get(&needed).unwrap_or(&empty) {
                count_down(batch, needed, *dependent);
            }
        }
        for needed in reopened {
            for dependent in edges.get(&needed).unwrap_or(&empty) {
                if let Some(row) = batch.jobs.get_mut(dependent) {
                    row.open_needs += 1;
                    batch.dirty.insert(*dependent);
                }
            }
        }
    }
    Ok(())
}

async fn ask(batch: &mut Batch, tx: &mut dyn Tx, needed: &[JobId]) -> Result<Graph> {
    let mut edges = Graph::new();
    let needed: BTreeSet<_> = needed.iter().copied().collect();
    for (needed, row) in tx.dependents(&needed.into_iter().collect::<Vec<_>>()).await? {
        edges.entry(needed).or_default().push(row.job.id);
        batch.jobs.entry(row.job.id).or_insert(row);
    }
    Ok(edges)
}

async fn look_up(
    batch: &mut Batch,
    tx: &mut dyn Tx,
    graphs: &mut BTreeMap<BuildId, Graph>,
    needed: &[JobId],
) -> Result<Graph> {
    let mut edges = Graph::new();
    for id in needed {
        let Some(build) = batch.jobs.get(id).map(|row| row.job.build) else { continue };
        if let std::collections::btree_map::Entry::Vacant(slot) = graphs.entry(build) {
            for row in tx.jobs_of(build).await? {
                batch.jobs.entry(row.job.id).or_insert(row);
            }
            let mut graph = Graph::new();
            for (job, needed) in tx.edges(build).await? {
                graph.entry(needed).or_default().push(job);
            }
            slot.insert(graph);
        }
        if let Some(dependents) = graphs.get(&build).and_then(|graph| graph.get(id)) {
            edges.insert(*id, dependents.clone());
        }
    }
    Ok(edges)
}

/// One need of a job is done.
fn count_down(batch: &mut Batch, needed: JobId, dependent: JobId) {
    let Some(why) = batch.jobs.get(&needed).map(skip_reason) else { return };
    let Some(row) = batch.jobs.get_mut(&dependent) else { return };
    row.open_needs = row.open_needs.saturating_sub(1);
    batch.dirty.insert(dependent);
    let event = match why {
        Some(reason) => Event::Skip(reason),
        None if row.open_needs == 0 => Event::Unblock,
        None => return,
    };
    let mut row = row.clone();
    let before = row.job.status();
    // Only a blocked job follows; another has been cancelled, skipped or run before.
    let Ok((job, _)) = row.job.clone().apply(event, batch.at) else { return };
    row.job = job;
    let change = JobChange::of(&row.job, &row.name);
    batch.changed(before, row, change);
}

/// Why a dependent of this done job never runs; nothing where it may.
pub(super) fn skip_reason(row: &JobRow) -> Option<SkipReason> {
    match row.job.status() {
        Status::Failed if !row.allow_failure => Some(SkipReason::NeedFailed),
        Status::Cancelled => Some(SkipReason::NeedCancelled),
        _ => None,
    }
}
