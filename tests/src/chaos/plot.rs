//! What a round does, and what it demands, for each kind of fault.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::TryStreamExt;
use kiln_sdk::{
    Client, LogRequest, Policy,
    v1::{
        BuildState, CancelBuildRequest, GetBuildRequest, Job, JobState, SubmitBuildRequest,
        event::Change,
    },
};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::task::TaskTracker;

use super::{
    blow::{Blow, Who},
    evidence::{Counting, Toll},
    fault::{Outage, Plot},
    process::{is_alive, until},
    world::World,
};

/// Whatever must happen has this much time on a machine that does much else.
const LIMIT: Duration = Duration::from_mins(4);
/// What a machine under load may take more than the product's own times.
const SLACK: Duration = Duration::from_secs(20);
/// Attempts that are told to end where any of them may run.
const ATTEMPTS: std::ops::RangeInclusive<i32> = 1..=5;

pub(super) async fn play(world: &mut World) -> Result<Toll> {
    let toll = match world.fault.plot {
        Plot::Survives => Box::pin(survives(world)).await?,
        Plot::Cancelled => Box::pin(cancelled(world)).await?,
        Plot::Replaced => Box::pin(replaced(world)).await?,
        Plot::Deserted => Box::pin(deserted(world)).await?,
        Plot::Exclusive => Box::pin(exclusive(world)).await?,
    };
    world.finish().await?;
    Ok(toll)
}

/// A build under way, with somebody who follows its log and somebody who watches it.
struct Watched {
    counting: Counting,
    client: Client,
    build: String,
    job: String,
    heard: Arc<Mutex<Vec<u8>>>,
    follower: JoinHandle<Result<()>>,
    watcher: JoinHandle<Result<BuildState>>,
}

impl Watched {
    async fn submit(world: &mut World, name: &str) -> Result<Self> {
        let exclusive = world.fault.plot == Plot::Exclusive;
        let padding = world.random.below(400);
        let counting = Counting::new(&world.path(""), name, padding, exclusive);
        let client = world.client(Policy::STREAM)?;
        let request = SubmitBuildRequest { spec: Some(counting.spec()), ..Default::default() };
        let build = client.submit(request).await?.build.context("no build")?.id;
        let seen = client.get_build(GetBuildRequest { build: build.clone() }).await?;
        let job = seen.jobs.first().context("no job")?.id.clone();
        let remote = world.remote_client()?;
        let heard = Arc::default();
        let tasks = TaskTracker::new();
        let follower = tasks.spawn(follow(remote.clone(), job.clone(), Arc::clone(&heard)));
        let watcher = tasks.spawn(watch(remote, build.clone()));
        Ok(Self { counting, client, build, job, heard, follower, watcher })
    }

    fn heard(&self) -> usize {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Until the follower has seen so many bytes.
    async fn follow_to(&self, bytes: usize) -> Result<()> {
        let what = format!("{bytes} bytes of log");
        until(&what, LIMIT, async || Ok((self.heard() >= bytes).then_some(()))).await
    }

    async fn run(&self, number: usize) -> Result<(i32, i32)> {
        let what = format!("run {number} of the job");
        until(&what, LIMIT, async || Ok(self.counting.runs()?.get(number - 1).copied())).await
    }

    async fn seen(&self) -> Result<Option<(BuildState, Job)>> {
        // Right after a blow a call may fail for longer than it is tried again.
        let request = GetBuildRequest { build: self.build.clone() };
        let Ok(answer) = self.client.get_build(request).await else { return Ok(None) };
        let state = answer.build.context("no build")?.state();
        Ok(Some((state, answer.jobs.into_iter().next().context("no job")?)))
    }

    async fn done(&self, wanted: BuildState, limit: Duration) -> Result<Job> {
        let over = [BuildState::Succeeded, BuildState::Failed, BuildState::Cancelled];
        let ended = async || Ok(self.seen().await?.filter(|(state, _)| over.contains(state)));
        let (state, job) = until("the end of the build", limit, ended).await?;
        ensure!(state == wanted, "the build is {state:?}: {job:?}");
        Ok(job)
    }

    async fn cancel(&self) -> Result<()> {
        until("an answer to the cancel", LIMIT, async || {
            let request = CancelBuildRequest { build: self.build.clone(), ..Default::default() };
            Ok(self.client.cancel_build(request).await.ok().map(drop))
        })
        .await
    }

    /// The whole log of the last attempt, by whoever asks now.
    async fn log(&self) -> Result<Vec<u8>> {
        let seen = Arc::default();
        let read = follow(self.client.clone(), self.job.clone(), Arc::clone(&seen));
        tokio::time::timeout(LIMIT, read).await.context("the log does not end")??;
        Ok(std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Whoever watched from the beginning has come to an end too; what the follower saw.
    async fn watched(self, wanted: BuildState) -> Result<Vec<u8>> {
        let ended = tokio::time::timeout(LIMIT, self.follower).await;
        ended.context("the follower does not end")??.context("the follower")?;
        let ended = tokio::time::timeout(LIMIT, self.watcher).await;
        let state = ended.context("the watcher does not end")??.context("the watcher")?;
        ensure!(state == wanted, "the watcher saw {state:?} at last");
        Ok(std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

async fn follow(client: Client, job: String, into: Arc<Mutex<Vec<u8>>>) -> Result<()> {
    let mut log = client.logs(LogRequest { job, ..LogRequest::default() });
    while let Some(piece) = log.try_next().await? {
        into.lock().unwrap_or_else(PoisonError::into_inner).extend(&piece.data);
    }
    Ok(())
}

async fn watch(client: Client, build: String) -> Result<BuildState> {
    let mut last = BuildState::Unspecified;
    let mut events = client.watch(&build, 0);
    while let Some(event) = events.try_next().await? {
        if let Some(Change::BuildChanged(change)) = event.change {
            last = change.state();
        }
    }
    Ok(last)
}

async fn strike(world: &mut World) -> Result<()> {
    for blow in world.fault.blows {
        blow.strike(world).await.with_context(|| format!("{blow:?}"))?;
    }
    Ok(())
}

async fn mend(world: &mut World) -> Result<()> {
    for blow in world.fault.blows {
        blow.mend(world).await.with_context(|| format!("the end of {blow:?}"))?;
    }
    Ok(())
}

async fn wait(world: &mut World) {
    sleep(match world.fault.outage {
        Outage::Short => world.random.up_to(Duration::from_secs(3)),
        Outage::PastGrace => world.grace + Duration::from_secs(2),
    })
    .await;
}

async fn under_way(world: &mut World, name: &str) -> Result<Watched> {
    let watched = Watched::submit(world, name).await?;
    let bytes = world.random.below(8_000);
    watched.follow_to(usize::try_from(bytes)?).await?;
    watched.run(1).await?;
    Ok(watched)
}

async fn survives(world: &mut World) -> Result<Toll> {
    let watched = under_way(world, "count").await?;
    let counting = watched.counting.clone();
    strike(world).await?;
    wait(world).await;
    // A job that ends while nobody hears it is as good as one that goes on.
    let ends_meanwhile = world.random.coin();
    if ends_meanwhile {
        counting.stop(1)?;
        sleep(world.random.up_to(Duration::from_secs(2))).await;
    }
    mend(world).await?;
    if !ends_meanwhile {
        watched.follow_to(watched.heard() + 2_000).await?;
        counting.stop(1)?;
    }
    let job = watched.done(BuildState::Succeeded, LIMIT).await?;
    let runs = counting.runs()?;
    let total = counting.total(job.attempt).context("the job left no count")?;
    let mut toll = counting.compare(&watched.log().await?, total);
    let heard = watched.watched(BuildState::Succeeded).await?;
    // A follower sees every attempt; where there was one only, both saw the same.
    toll.rerun += runs.len() - 1;
    if toll.rerun == 0 {
        toll += counting.compare(&heard, total);
    }
    Ok(toll)
}

async fn cancelled(world: &mut World) -> Result<Toll> {
    let watched = under_way(world, "count").await?;
    let (_, pid) = watched.run(1).await?;
    let before = world.random.coin();
    if before {
        watched.cancel().await?;
    }
    strike(world).await?;
    wait(world).await;
    let reachable = !world.fault.strikes(|blow| *blow == Blow::Kill(Who::Server));
    if !before && reachable {
        watched.cancel().await?;
    }
    mend(world).await?;
    if !before && !reachable {
        watched.cancel().await?;
    }
    watched.done(BuildState::Cancelled, LIMIT).await?;
    dead(pid).await?;
    let rerun = watched.counting.runs()?.len() - 1;
    let counting = watched.counting.clone();
    let heard = watched.watched(BuildState::Cancelled).await?;
    let toll = ordered(&counting, &heard);
    Ok(Toll { rerun, ..toll })
}

async fn dead(pid: i32) -> Result<()> {
    until("the end of the job's process", LIMIT, async || Ok((!is_alive(pid)).then_some(()))).await
}

/// Of a job that was ended: the lines that it printed, up to where it was.
fn ordered(counting: &Counting, log: &[u8]) -> Toll {
    let lines = log.split_inclusive(|&byte| byte == b'\n');
    let printed: Vec<&[u8]> = lines.filter(|line| line.starts_with(b"line ")).collect();
    let whole = printed.iter().filter(|line| line.ends_with(b"\n")).count();
    counting.compare(&printed[..whole].concat(), whole)
}

async fn replaced(world: &mut World) -> Result<Toll> {
    let watched = under_way(world, "count").await?;
    let counting = watched.counting.clone();
    world.add_other_agent().await?;
    strike(world).await?;
    let struck = Instant::now();
    let (attempt, _) = watched.run(2).await?;
    let took = struck.elapsed();
    ensure!(took < world.grace + SLACK, "it was run again after {took:?} only");
    ensure!(attempt == 2, "the second run is attempt {attempt}");
    let ended_before = world.random.coin();
    if ended_before {
        counting.stop(1)?;
        until("the end of the first run", LIMIT, async || Ok(counting.total(1))).await?;
    }
    mend(world).await?;
    counting.stop(1)?;
    let leases = world.path("agent-0/leases");
    until("the first agent's forgetting of the job", LIMIT, async || {
        Ok((std::fs::read_dir(&leases)?.count() == 0).then_some(()))
    })
    .await?;
    let Some((_, job)) = watched.seen().await? else { bail!("the build can't be read") };
    let holds = job.state() == JobState::Running && job.attempt == 2;
    ensure!(holds, "the late word of the first agent changed the job: {job:?}");
    counting.stop(2)?;
    watched.done(BuildState::Succeeded, LIMIT).await?;
    let total = counting.total(2).context("the second run left no count")?;
    let mut toll = counting.compare(&watched.log().await?, total);
    toll.rerun = counting.runs()?.len() - 2;
    watched.watched(BuildState::Succeeded).await?;
    Ok(toll)
}

async fn deserted(world: &mut World) -> Result<Toll> {
    let watched = under_way(world, "count").await?;
    let (_, pid) = watched.run(1).await?;
    strike(world).await?;
    watched.cancel().await?;
    watched.done(BuildState::Cancelled, world.grace + SLACK).await?;
    // Should it ever come back, it learns that the job is not wanted.
    mend(world).await?;
    dead(pid).await?;
    let rerun = watched.counting.runs()?.len() - 1;
    watched.watched(BuildState::Cancelled).await?;
    Ok(Toll { rerun, ..Toll::default() })
}

async fn exclusive(world: &mut World) -> Result<Toll> {
    let first = under_way(world, "first").await?;
    world.add_other_agent().await?;
    let second = Watched::submit(world, "second").await?;
    strike(world).await?;
    if world.fault.outage == Outage::PastGrace {
        until("another run of the group", LIMIT, async || {
            let runs = first.counting.runs()?.len() + second.counting.runs()?.len();
            Ok((runs > 1).then_some(()))
        })
        .await?;
    } else {
        wait(world).await;
    }
    mend(world).await?;
    for attempt in ATTEMPTS {
        first.counting.stop(attempt)?;
        second.counting.stop(attempt)?;
    }
    let mut toll = Toll::default();
    for watched in [first, second] {
        let job = watched.done(BuildState::Succeeded, LIMIT).await?;
        let total = watched.counting.total(job.attempt).context("the job left no count")?;
        toll += watched.counting.compare(&watched.log().await?, total);
        ensure!(watched.counting.overlaps() == 0, "two jobs of the group ran at once");
        watched.watched(BuildState::Succeeded).await?;
    }
    Ok(toll)
}
