//! What a build's rows should say, computed anew from its jobs: the safety net under counts that change by one.

use std::collections::BTreeMap;

use kiln_core::{
    Millis,
    build::Counts,
    event::{Change, Record},
    id::{BuildId, JobId},
    job::{Event, SkipReason, State},
};

use super::{Applied, Transition, apply, cascade::skip_reason};
use crate::store::{Error, Result, Tx};

/// Recomputes counts and open needs of a build, lets go what should not wait, and says what differed.
pub async fn repair(tx: &mut dyn Tx, build: BuildId, at: Millis) -> Result<(Vec<String>, Applied)> {
    let Some(mut row) = tx.lock_builds(&[build]).await?.pop() else {
        return Ok((vec![], Applied::default()));
    };
    let mut found = vec![];
    let jobs = tx.jobs_of(build).await?;
    let rows: BTreeMap<JobId, (bool, Option<SkipReason>)> = jobs
        .iter()
        .map(|row| (row.job.id, (row.job.status().is_done(), skip_reason(row))))
        .collect();
    let mut open: BTreeMap<JobId, u32> = BTreeMap::new();
    let mut barred: BTreeMap<JobId, SkipReason> = BTreeMap::new();
    for (job, needed) in tx.edges(build).await? {
        let (done, skip) = rows.get(&needed).copied().unwrap_or((true, None));
        *open.entry(job).or_default() += u32::from(!done);
        barred.extend(skip.map(|reason| (job, reason)));
    }
    let mut counts = Counts::default();
    let mut wrong = vec![];
    let mut free = vec![];
    for mut job in jobs {
        counts.add(job.job.status(), job.allow_failure);
        let needs = open.get(&job.job.id).copied().unwrap_or_default();
        if job.job.state == State::Blocked
            && let Some(event) = missed(needs, barred.get(&job.job.id))
        {
            found.push(format!("{} was left blocked", job.name));
            free.push(Transition::new(build, job.job.id, event).because("repaired"));
        }
        if job.open_needs != needs {
            found.push(format!("{} has {needs} open needs, not {}", job.name, job.open_needs));
            job.open_needs = needs;
            wrong.push(job);
        }
    }
    if !tx.save_jobs(&wrong).await?.is_empty() {
        return Err(Error::Conflict);
    }
    if row.counts != counts {
        found.push(format!("counts are {counts:?}, not {:?}", row.counts));
        row.counts = counts;
        row.last_event += 1;
        row.finished_at = row.state().is_done().then_some(row.finished_at.unwrap_or(at));
        let change = Change::Build { state: row.state() };
        tx.append_events(&[Record { build, number: row.last_event, at, change }]).await?;
        tx.save_builds(&[row]).await?;
    }
    let applied = if free.is_empty() { Applied::default() } else { apply(tx, &free, at).await? };
    Ok((found, applied))
}

/// What a blocked job should have been told.
fn missed(open_needs: u32, barred: Option<&SkipReason>) -> Option<Event> {
    match barred {
        Some(reason) => Some(Event::Skip(*reason)),
        None => (open_needs == 0).then_some(Event::Unblock),
    }
}
