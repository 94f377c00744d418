//! What must hold when the world has healed.

use std::collections::BTreeMap;

use kiln_core::{
    build::Counts,
    event::Change,
    id::{BuildId, JobId, LeaseId},
    outcome::Outcome,
};

use super::world::World;

pub(super) async fn all(world: &World) -> Result<(), String> {
    processes_ran_once(world)?;
    for &build in &world.builds {
        let jobs = world.store.jobs_of(build).await.map_err(|error| error.to_string())?;
        let view = world.app.build(build).await.map_err(|error| error.to_string())?;
        let mut counts = Counts::default();
        for job in &jobs {
            counts.add(job.job.status(), job.allow_failure);
            if job.job.attempt > job.job.retry.max_attempts {
                return Err(format!("{} spent {} attempts", job.job.id, job.job.attempt));
            }
            successes_are_real(world, &job.job)?;
        }
        if counts != view.build.counts {
            return Err(format!("{build} counts {:?}, its jobs say {counts:?}", view.build.counts));
        }
        events_tell_the_story(world, build, view.build.last_event).await?;
    }
    nothing_is_held(world).await
}

/// At no moment do two processes of the exclusive group run.
pub(super) fn exclusive(world: &World) -> Result<(), String> {
    let running = world.machines.iter().flat_map(|machine| machine.processes.iter());
    let leases: Vec<_> = running
        .filter(|(_, process)| process.assignment.exclusive)
        .map(|(lease, _)| *lease)
        .collect();
    if leases.len() > 1 {
        return Err(format!("{leases:?} run at the same time in an exclusive group"));
    }
    Ok(())
}

fn processes_ran_once(world: &World) -> Result<(), String> {
    let mut starts: BTreeMap<LeaseId, u32> = BTreeMap::new();
    for (&lease, &times) in world.machines.iter().flat_map(|machine| &machine.starts) {
        *starts.entry(lease).or_default() += times;
    }
    match starts.into_iter().find(|(_, times)| *times > 1) {
        Some((lease, times)) => Err(format!("{lease} was started {times} times")),
        None => Ok(()),
    }
}

/// A job succeeded only if the process of the lease that was answered did.
fn successes_are_real(world: &World, job: &kiln_core::job::Job) -> Result<(), String> {
    if job.state != kiln_core::job::State::Done(Outcome::Succeeded) {
        return Ok(());
    }
    let Some(lease) = job.answered else { return Err(format!("{} succeeded unanswered", job.id)) };
    let ended = world.machines.iter().find_map(|machine| machine.results.get(&lease));
    match ended {
        Some(Outcome::Succeeded) => Ok(()),
        other => {
            Err(format!("{} succeeded by {lease}, whose process ended with {other:?}", job.id))
        }
    }
}

async fn events_tell_the_story(world: &World, build: BuildId, last: i64) -> Result<(), String> {
    let events = world.store.events(build, 0, 100_000).await.map_err(|error| error.to_string())?;
    let numbers: Vec<_> = events.iter().map(|event| event.number).collect();
    if numbers != (1..=last).collect::<Vec<_>>() {
        return Err(format!("{build} has events {numbers:?}, its last is {last}"));
    }
    let mut settled: BTreeMap<(JobId, u32), u32> = BTreeMap::new();
    for event in &events {
        if let Change::Job(change) = &event.change
            && change.status.is_done()
        {
            *settled.entry((change.job, change.round)).or_default() += 1;
        }
    }
    match settled.into_iter().find(|(_, times)| *times != 1) {
        Some(((job, round), times)) => {
            Err(format!("{job} was settled {times} times in round {round}"))
        }
        None => Ok(()),
    }
}

async fn nothing_is_held(world: &World) -> Result<(), String> {
    let open = world.store.open_leases(None).await.map_err(|error| error.to_string())?;
    if let Some(lease) = open.first() {
        return Err(format!("{} is still open", lease.id));
    }
    let projects = world.store.projects().await.map_err(|error| error.to_string())?;
    match projects.iter().find(|project| project.running != 0) {
        Some(project) => {
            Err(format!("project {} counts {} running jobs", project.name, project.running))
        }
        None => Ok(()),
    }
}
