//! Who gets what: groups, limits, fair share, affinity, and who is woken.

use futures::FutureExt;
use kiln_core::{
    schedule::STICKY_MS,
    spec::{ConcurrencyGroup, Source},
};

use super::*;

scenarios! {
    a_group_runs_in_the_order_of_submission_and_blocked_members_hold_no_place,
    what_holds_a_group_is_told,
    a_lower_limit_of_a_group_bars_who_was_let_in_before,
    a_claim_that_leaves_something_wakes_the_next,
    a_job_that_is_kept_wakes_nobody_in_circles,
    two_sessions_never_take_the_last_place_of_a_group_or_a_limit,
    limits_and_pauses_of_a_project_hold,
    three_thousand_jobs_of_one_project_keep_nobody_waiting,
    an_agent_takes_no_more_than_its_slots_and_only_what_fits,
    a_job_waits_shortly_for_the_agent_with_warm_caches,
    the_sticky_wait_ends,
    as_many_sessions_are_woken_as_there_are_jobs,
    a_waiting_session_is_woken_by_a_submission_a_free_slot_and_the_end_of_a_backoff,
    a_paused_agent_takes_nothing_and_a_pause_ends_by_itself,
}

fn in_group(name: &str, needs: &[&str], limit: u32) -> JobSpec {
    let concurrency = Some(ConcurrencyGroup { name: "deploy".into(), limit });
    JobSpec { concurrency, ..job(name, needs) }
}

async fn a_group_runs_in_the_order_of_submission_and_blocked_members_hold_no_place(world: World) {
    let session = world.connect("a", 8).await;
    let first = vec![in_group("later", &["slow"], 1), job("slow", &[])];
    let first = world.submit(first).await.build.id;
    let second = world.submit(vec![in_group("one", &[], 1)]).await.build.id;
    let third = world.submit(vec![in_group("two", &[], 1)]).await.build.id;

    let given = world.claim(session).await;
    let names: Vec<_> = given.iter().map(|given| given.spec.name.as_str()).collect();
    assert_eq!(names, ["slow", "one"]);
    assert_eq!((given[0].exclusive, given[1].exclusive), (false, true));
    assert_eq!(world.claim(session).await, [], "the group is full");

    for given in &given {
        world.start(session, given.lease).await;
        world.finish(session, given.lease, Outcome::Succeeded).await;
    }
    assert_eq!(world.statuses(first).await, "later:queued slow:succeeded");
    let given = world.claim(session).await;
    assert_eq!(given.len(), 1);
    assert_eq!(given[0].spec.name, "later", "the earlier submission goes first");
    world.finish(session, given[0].lease, Outcome::Succeeded).await;
    let two = world.job(third, "two").await.job.id;
    assert_eq!(world.claim(session).await[0].job, two);
    assert_eq!(world.statuses(second).await, "one:succeeded");
    world.check().await;
}

async fn what_holds_a_group_is_told(world: World) {
    let session = world.connect("a", 2).await;
    world.submit(vec![in_group("one", &[], 1)]).await;
    let build = world.submit(vec![in_group("two", &[], 1)]).await.build.id;
    assert_eq!(world.claim(session).await.len(), 1);
    let two = world.job(build, "two").await.job.id;
    let told = world.app.explain(two).await.unwrap();
    assert_eq!(told.reasons[0].code, "CONCURRENCY_GROUP");
    assert!(told.reasons[0].message.contains("one"), "{told:?}");
}

async fn a_lower_limit_of_a_group_bars_who_was_let_in_before(world: World) {
    let session = world.connect("a", 8).await;
    let build = world.submit((0..4).map(|n| in_group(&format!("j{n}"), &[], 3)).collect()).await;
    let last = world.submit(vec![in_group("last", &[], 1)]).await;
    assert_eq!(world.claim(session).await.len(), 1);
    assert_eq!(world.statuses(build.build.id).await, "j0:leased j1:queued j2:queued j3:queued");
    assert_eq!(world.statuses(last.build.id).await, "last:queued");
}

async fn two_sessions_never_take_the_last_place_of_a_group_or_a_limit(world: World) {
    world.app.create_project("small", None, 1).await.unwrap();
    let sessions = [world.connect("a", 4).await, world.connect("b", 4).await];
    world.submit_to("small", jobs(4)).await;
    world.submit(vec![in_group("x", &[], 1), in_group("y", &[], 1)]).await;
    let (left, right) = tokio::join!(world.claim(sessions[0]), world.claim(sessions[1]));
    let projects: Vec<_> = left.iter().chain(&right).map(|given| given.project.as_str()).collect();
    assert_eq!(projects.iter().filter(|name| **name == "small").count(), 1, "{projects:?}");
    assert_eq!(projects.iter().filter(|name| **name == "default").count(), 1, "{projects:?}");
    world.check().await;
}

async fn limits_and_pauses_of_a_project_hold(world: World) {
    world.app.create_project("p", None, 2).await.unwrap();
    let session = world.connect("a", 8).await;
    let build = world.submit_to("p", jobs(5)).await.build.id;
    assert_eq!(world.claim(session).await.len(), 2);
    assert_eq!(world.claim(session).await, []);
    world.app.update_project("p", None, Some(4), None).await.unwrap();
    assert_eq!(world.claim(session).await.len(), 2);
    world.app.update_project("p", None, Some(0), Some(true)).await.unwrap();
    assert_eq!(world.claim(session).await, []);
    let last = world.job(build, "j4").await.job.id;
    assert_eq!(world.app.explain(last).await.unwrap().reasons[0].code, "PROJECT_PAUSED");
    world.app.update_project("p", None, None, Some(false)).await.unwrap();
    assert_eq!(world.claim(session).await.len(), 1);
    world.check().await;
}

async fn three_thousand_jobs_of_one_project_keep_nobody_waiting(world: World) {
    for name in ["big", "little"] {
        world.app.create_project(name, None, 0).await.unwrap();
    }
    let session = world.connect("a", 4).await;
    world.submit_to("big", jobs(3_000)).await;
    world.clock.advance(1_000);
    world.submit_to("little", jobs(2)).await;
    let given = world.claim(session).await;
    let little = given.iter().filter(|given| given.project == "little").count();
    assert_eq!((given.len(), little), (4, 2));
}

async fn an_agent_takes_no_more_than_its_slots_and_only_what_fits(world: World) {
    let session = world.connect("a", 3).await;
    let arm = JobSpec {
        constraints: kiln_core::spec::Constraints { arch: "arm64".into(), ..Default::default() },
        ..job("arm", &[])
    };
    let mut specs = jobs(5);
    specs.push(arm);
    let build = world.submit(specs).await.build.id;
    assert_eq!(world.claim(session).await.len(), 3);
    assert_eq!(world.claim(session).await, []);
    let arm = world.job(build, "arm").await.job.id;
    let told = world.app.explain(arm).await.unwrap();
    assert_eq!(told.agents[0].reasons[0].code, "ARCH");
    assert!(!told.agents[0].fits);
}

async fn a_job_waits_shortly_for_the_agent_with_warm_caches(world: World) {
    let warm = world.connect("warm", 1).await;
    let cold = world.connect("cold", 1).await;
    let source = Some(Source::Git {
        url: "https://example.org/a.git".into(),
        r#ref: String::new(),
        submodules: false,
    });
    let spec = || vec![JobSpec { source: source.clone(), ..job("j", &[]) }];
    world.submit(spec()).await;
    world.run_one(warm, Outcome::Succeeded).await;

    world.submit(spec()).await;
    assert_eq!(world.claim(cold).await, [], "it is kept for the warm one");
    assert_eq!(world.claim(warm).await.len(), 1);
    world.submit(spec()).await;
    assert_eq!(world.claim(cold).await.len(), 1, "the warm one has no room");

    let third = world.connect("third", 1).await;
    world.app.drain_agent("warm").await.unwrap();
    world.submit(spec()).await;
    assert_eq!(world.claim(third).await.len(), 1, "the warm one takes no jobs");
    world.check().await;
}

async fn the_sticky_wait_ends(world: World) {
    let warm = world.connect("warm", 1).await;
    let cold = world.connect("cold", 1).await;
    world.submit(jobs(1)).await;
    world.run_one(warm, Outcome::Succeeded).await;
    world.submit(jobs(1)).await;
    assert_eq!(world.claim(cold).await, []);
    world.clock.advance(u64::try_from(STICKY_MS).unwrap());
    assert_eq!(world.claim(cold).await.len(), 1);
}

async fn as_many_sessions_are_woken_as_there_are_jobs(world: World) {
    let world = world.deaf();
    let mut sessions = vec![];
    for n in 0..4 {
        let session = world.connect(&format!("agent-{n}"), 1).await;
        world.app.claimable(session).await;
        assert_eq!(world.claim(session).await, []);
        sessions.push(session);
    }
    let mut waits: Vec<_> =
        sessions.iter().map(|session| Box::pin(world.app.claimable(*session))).collect();
    for wait in &mut waits {
        assert!(wait.as_mut().now_or_never().is_none(), "nothing is there");
    }
    world.submit(jobs(2)).await;
    let woken = waits.iter_mut().filter_map(|wait| wait.as_mut().now_or_never()).count();
    assert_eq!(woken, 2);
}

async fn a_claim_that_leaves_something_wakes_the_next(world: World) {
    let world = world.deaf();
    let mut sessions = vec![];
    for n in 0..3 {
        let session = world.connect(&format!("agent-{n}"), 1).await;
        world.app.claimable(session).await;
        assert_eq!(world.claim(session).await, []);
        sessions.push(session);
    }
    world.submit(jobs(3)).await;
    let worked = sessions.iter().map(|session| async {
        world.app.claimable(*session).await;
        world.claim(*session).await.len()
    });
    assert_eq!(futures::future::join_all(worked).await, [1, 1, 1]);
}

async fn a_job_that_is_kept_wakes_nobody_in_circles(world: World) {
    let world = world.deaf();
    let warm = world.connect("warm", 1).await;
    let cold = [world.connect("b", 1).await, world.connect("c", 1).await];
    world.submit(jobs(1)).await;
    world.run_one(warm, Outcome::Succeeded).await;
    world.submit(jobs(1)).await;
    assert_eq!(world.claim(cold[1]).await, []);
    let mut other = Box::pin(world.app.claimable(cold[1]));
    assert!(other.as_mut().now_or_never().is_none());
    assert_eq!(world.claim(cold[0]).await, []);
    assert!(other.as_mut().now_or_never().is_none(), "it would find the same and wake the first");
    // Each waits for the end of the sticky wait instead.
    let wait = Duration::from_millis(u64::try_from(STICKY_MS).unwrap());
    for session in cold {
        assert_eq!(world.app.0.dispatch.next_claim(session), Some(wait));
    }
}

async fn a_waiting_session_is_woken_by_a_submission_a_free_slot_and_the_end_of_a_backoff(
    world: World,
) {
    let session = world.connect("a", 1).await;
    world.app.claimable(session).await;
    assert_eq!(world.claim(session).await, []);
    let ((), build) = tokio::join!(world.app.claimable(session), world.submit(jobs(2)));
    let given = world.claim(session).await;
    assert_eq!(given.len(), 1);
    world.start(session, given[0].lease).await;
    let outcome = Outcome::failed(FailureKind::Infra, "no disk");
    tokio::join!(world.app.claimable(session), world.finish(session, given[0].lease, outcome));
    let second = world.claim(session).await;
    assert_eq!(second.len(), 1);
    world.finish(session, second[0].lease, Outcome::Succeeded).await;
    world.clock.advance(1_000);
    // The timer of the backoff is due by the clock; the sweep would find it as well.
    world.app.look_again();
    while world.claim(session).await.is_empty() {
        world.app.claimable(session).await;
    }
    assert_eq!(world.statuses(build.build.id).await, "j0:leased j1:succeeded");
}

async fn a_paused_agent_takes_nothing_and_a_pause_ends_by_itself(world: World) {
    let session = world.connect("a", 1).await;
    world.app.pause_agent("a", "disk swap", Some(5_000)).await.unwrap();
    let build = world.submit(jobs(1)).await.build.id;
    assert_eq!(world.claim(session).await, []);
    let job = world.job(build, "j0").await.job.id;
    let told = world.app.explain(job).await.unwrap();
    assert!(told.agents[0].reasons[0].message.contains("disk swap"), "{told:?}");
    world.clock.advance(5_000);
    world.app.sweep().await.unwrap();
    assert_eq!(world.store.agents().await.unwrap()[0].admission, Admission::Open);
    assert_eq!(world.claim(session).await.len(), 1);
}
