//! Dead sessions by observed beats, overdue jobs, repairs.

use kiln_core::{agent::Load, build::Counts};

use futures::FutureExt;

use super::*;

scenarios! {
    what_no_agent_takes_ends_with_its_queue_timeout,
    counts_that_differ_are_repaired,
    a_session_that_is_silent_for_the_grace_time_is_dead,
    a_session_that_beats_lives,
    an_outage_longer_than_the_grace_time_expires_nothing,
    a_clock_that_jumps_expires_nothing,
    a_dead_agent_does_not_keep_a_cancelled_job_alive,
}

/// A running job of an agent that this replica does not hear itself.
async fn running(edge: World) -> (World, World, SessionId, BuildId) {
    let session = edge.connect("a", 1).await;
    let build = edge.submit(jobs(1)).await.build.id;
    let given = edge.claim(session).await.remove(0);
    edge.start(session, given.lease).await;
    let reaper = World::beside(Arc::clone(&edge.store), Arc::clone(&edge.clock));
    (edge, reaper, session, build)
}

/// Sweeps every five seconds.
async fn sweep_for(world: &World, seconds: u64) {
    for _ in 0..seconds / 5 {
        world.app.sweep().await.unwrap();
        world.clock.advance(5_000);
    }
}

async fn a_session_that_is_silent_for_the_grace_time_is_dead(world: World) {
    let (edge, reaper, session, build) = running(world).await;
    sweep_for(&reaper, 60).await;
    assert_eq!(edge.statuses(build).await, "j0:running", "55 s are less than the grace time");
    sweep_for(&reaper, 10).await;
    assert_eq!(edge.statuses(build).await, "j0:queued", "lost, and tried again");
    assert_eq!(edge.job(build, "j0").await.job.attempt, 1);
    assert!(!edge.app.beat(session, Load::default()).await.unwrap());
    edge.check().await;
}

async fn a_session_that_beats_lives(world: World) {
    let (edge, reaper, session, build) = running(world).await;
    for _ in 0..10 {
        sweep_for(&reaper, 50).await;
        assert!(edge.app.beat(session, Load::default()).await.unwrap());
    }
    assert_eq!(edge.statuses(build).await, "j0:running");
}

async fn an_outage_longer_than_the_grace_time_expires_nothing(world: World) {
    let (edge, reaper, session, build) = running(world).await;
    sweep_for(&reaper, 55).await;
    reaper.clock.advance(3_600_000);
    sweep_for(&reaper, 60).await;
    assert_eq!(edge.statuses(build).await, "j0:running", "the observation began anew");
    assert!(edge.app.beat(session, Load::default()).await.unwrap());
    sweep_for(&reaper, 60).await;
    assert_eq!(edge.statuses(build).await, "j0:running");
}

async fn a_clock_that_jumps_expires_nothing(world: World) {
    let (edge, reaper, _, build) = running(world).await;
    sweep_for(&reaper, 30).await;
    reaper.clock.jump(1_000 * 3_600);
    sweep_for(&reaper, 20).await;
    reaper.clock.jump(-7_000 * 3_600);
    reaper.app.sweep().await.unwrap();
    assert_eq!(edge.statuses(build).await, "j0:running");
}

#[tokio::test]
async fn a_replica_that_hears_an_agent_itself_never_gives_it_up() {
    let memory = Memory::default();
    let (edge, _, session, build) = running(World::over(Arc::new(memory.clone()))).await;
    for _ in 0..40 {
        memory.fail_next_commit(1);
        assert!(edge.app.beat(session, Load::default()).await.is_err(), "the beat is not stored");
        sweep_for(&edge, 5).await;
    }
    assert_eq!(edge.statuses(build).await, "j0:running");
}

/// The database reads but does not write for longer than the grace time: heartbeats wait.
#[tokio::test]
async fn heartbeats_that_wait_for_the_database_count() {
    let (edge, _, session, build) = running(World::in_memory()).await;
    let writer = edge.store.begin().await.unwrap();
    let mut beats = vec![];
    for _ in 0..20 {
        let mut beat = Box::pin(edge.app.beat(session, Load::default()));
        assert!(beat.as_mut().now_or_never().is_none());
        beats.push(beat);
        let swept = tokio::time::timeout(Duration::from_secs(5), sweep_for(&edge, 5)).await;
        assert!(swept.is_ok(), "the reaper waits to close the session");
    }
    drop(writer);
    for beat in beats {
        assert!(beat.await.unwrap());
    }
    assert_eq!(edge.statuses(build).await, "j0:running");
}

async fn a_dead_agent_does_not_keep_a_cancelled_job_alive(world: World) {
    let (edge, reaper, _, build) = running(world).await;
    edge.app.cancel(build, None, "").await.unwrap();
    assert_eq!(edge.statuses(build).await, "j0:running");
    sweep_for(&reaper, 70).await;
    assert_eq!(edge.statuses(build).await, "j0:cancelled");
    edge.check().await;
}

async fn what_no_agent_takes_ends_with_its_queue_timeout(world: World) {
    let mut spec = job("j", &[]);
    spec.timeouts.queue_ms = 30_000;
    let build = world.submit(vec![spec, job("after", &["j"])]).await.build.id;
    world.clock.advance(29_999);
    world.app.sweep().await.unwrap();
    assert_eq!(world.statuses(build).await, "j:queued after:blocked");
    world.clock.advance(1);
    world.app.sweep().await.unwrap();
    assert_eq!(world.statuses(build).await, "j:failed after:failed");
    world.check().await;
}

async fn counts_that_differ_are_repaired(world: World) {
    let build = world.submit(vec![job("a", &[]), job("b", &["a"])]).await.build.id;
    let mut tx = world.store.begin().await.unwrap();
    let mut row = tx.lock_builds(&[build]).await.unwrap().remove(0);
    row.counts = Counts { running: 9, ..Counts::default() };
    tx.save_builds(&[row]).await.unwrap();
    let mut blocked = world.job(build, "b").await;
    blocked.open_needs = 5;
    tx.save_jobs(&[blocked]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(world.store.inconsistent(10).await.unwrap(), [build]);
    world.app.sweep().await.unwrap();
    world.check().await;
    assert_eq!(world.job(build, "b").await.open_needs, 1);
}
