//! Graphs, cancel, retry, keys.

use kiln_core::{build::BuildState, job::State, session::Artifact, trace::Trace};

use super::*;
use crate::app::Error;
use crate::store::BuildFilter;

scenarios! {
    a_graph_runs_in_its_order_and_hands_artifacts_on,
    dependents_of_a_failure_are_skipped_to_the_end_of_a_long_chain,
    an_allowed_failure_lets_its_dependents_run,
    cancel_ends_what_waits_and_flags_what_runs,
    cancel_of_one_job_cancels_its_dependents,
    a_retry_opens_one_round_however_often_it_is_said,
    a_retry_names_the_need_that_keeps_it_from_running,
    a_key_names_one_submission,
    what_is_wrong_with_a_submission_is_named_and_nothing_is_stored,
    infrastructure_failures_are_tried_again_after_a_backoff,
    a_thousand_jobs_are_submitted_cancelled_and_retried,
    pages_of_builds_meet_without_gap,
    each_lease_of_a_traced_build_has_its_place,
}

async fn a_graph_runs_in_its_order_and_hands_artifacts_on(world: World) {
    let session = world.connect("a", 4).await;
    let build = world.submit(vec![job("compile", &[]), job("test", &["compile"])]).await.build.id;
    assert_eq!(world.statuses(build).await, "compile:queued test:blocked");

    let given = world.claim(session).await.remove(0);
    assert_eq!(given.spec.name, "compile");
    world.start(session, given.lease).await;
    let artifact =
        Artifact { name: "out/a.bin".into(), size: 3, sha256: "0".repeat(64), mode: 0o644 };
    let report = Report { artifacts: vec![artifact.clone()], ..report(Outcome::Succeeded) };
    world.app.record(session, Record::Finish(given.lease, report)).await.unwrap();
    assert_eq!(world.statuses(build).await, "compile:succeeded test:queued");

    let given = world.claim(session).await.remove(0);
    assert_eq!((given.spec.name.as_str(), given.inputs), ("test", vec![artifact]));
    world.start(session, given.lease).await;
    world.finish(session, given.lease, Outcome::Succeeded).await;
    assert_eq!(world.app.build(build).await.unwrap().build.state(), BuildState::Succeeded);
    world.check().await;
    world.stop().await;
}

async fn dependents_of_a_failure_are_skipped_to_the_end_of_a_long_chain(world: World) {
    let session = world.connect("a", 1).await;
    let chain = (0..200)
        .map(|n: usize| {
            let before = n.checked_sub(1).map(|n| format!("j{n}"));
            job(&format!("j{n}"), &before.as_deref().into_iter().collect::<Vec<_>>())
        })
        .collect();
    let build = world.submit(chain).await.build.id;
    world.run_one(session, failed()).await;
    let jobs = world.jobs(build).await;
    for (name, row) in jobs.iter().filter(|(name, _)| *name != "j0") {
        let State::Done(Outcome::Failed { kind, .. }) = &row.job.state else { panic!("{name}") };
        assert_eq!(*kind, FailureKind::Dependency);
    }
    assert_eq!(world.app.build(build).await.unwrap().build.state(), BuildState::Failed);
    world.check().await;
}

async fn an_allowed_failure_lets_its_dependents_run(world: World) {
    let session = world.connect("a", 1).await;
    let lint = JobSpec { allow_failure: true, ..job("lint", &[]) };
    let build = world.submit(vec![lint, job("last", &["lint"])]).await.build.id;
    world.run_one(session, failed()).await;
    assert_eq!(world.statuses(build).await, "lint:failed last:queued");
    world.run_one(session, Outcome::Succeeded).await;
    assert_eq!(world.app.build(build).await.unwrap().build.state(), BuildState::Succeeded);
    world.check().await;
}

async fn cancel_ends_what_waits_and_flags_what_runs(world: World) {
    let session = world.connect("a", 2).await;
    let specs =
        vec![job("runs", &[]), job("leased", &[]), job("queued", &[]), job("blocked", &["runs"])];
    let build = world.submit(specs).await.build.id;
    let given = world.claim(session).await;
    world.start(session, given[0].lease).await;
    world.app.cancel(build, None, "not needed").await.unwrap();
    assert_eq!(
        world.statuses(build).await,
        "runs:running leased:leased queued:cancelled blocked:cancelled"
    );
    let events = world.app.build(build).await.unwrap().build.last_event;
    world.app.cancel(build, None, "again").await.unwrap();
    assert_eq!(world.app.build(build).await.unwrap().build.last_event, events, "repeated");

    let (facts, _) = world.app.facts(world.store.agents().await.unwrap()[0].id).await.unwrap();
    assert!(facts.iter().all(|facts| facts.cancelling) && facts.len() == 2);
    world.finish(session, given[0].lease, failed()).await;
    world.app.record(session, Record::Return(given[1].lease, "stopped".into())).await.unwrap();
    assert_eq!(
        world.statuses(build).await,
        "runs:cancelled leased:cancelled queued:cancelled blocked:cancelled"
    );
    assert_eq!(world.app.build(build).await.unwrap().build.state(), BuildState::Cancelled);
    world.check().await;
}

async fn cancel_of_one_job_cancels_its_dependents(world: World) {
    let build = world.submit(vec![job("a", &[]), job("b", &["a"]), job("c", &[])]).await.build.id;
    let a = world.job(build, "a").await.job.id;
    world.app.cancel(build, Some(a), "").await.unwrap();
    assert_eq!(world.statuses(build).await, "a:cancelled b:cancelled c:queued");
    let other = world.submit(vec![job("x", &[])]).await.build.id;
    let error = world.app.cancel(other, Some(a), "").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "job", .. }), "{error}");
    world.check().await;
}

async fn a_retry_opens_one_round_however_often_it_is_said(world: World) {
    let session = world.connect("a", 1).await;
    let specs =
        vec![job("ok", &[]), job("bad", &["ok"]), job("after", &["bad"]), job("last", &["after"])];
    let build = world.submit(specs).await.build.id;
    world.run_one(session, Outcome::Succeeded).await;
    world.run_one(session, failed()).await;
    assert_eq!(world.statuses(build).await, "ok:succeeded bad:failed after:failed last:failed");

    let bad = world.job(build, "bad").await.job.id;
    let (_, opened) = world.app.retry(build, vec![(bad, Some(1))]).await.unwrap();
    assert_eq!(opened.len(), 3);
    assert_eq!(world.statuses(build).await, "ok:succeeded bad:queued after:blocked last:blocked");
    let (_, opened) = world.app.retry(build, vec![(bad, Some(1))]).await.unwrap();
    assert_eq!(opened, []);
    assert_eq!(world.job(build, "bad").await.job.round, 2);
    world.check().await;

    for _ in 0..3 {
        world.run_one(session, Outcome::Succeeded).await;
    }
    assert_eq!(world.app.build(build).await.unwrap().build.state(), BuildState::Succeeded);
    assert_eq!(world.app.retry(build, vec![]).await.unwrap().1, [], "nothing is unsuccessful");
    world.check().await;
}

async fn a_retry_names_the_need_that_keeps_it_from_running(world: World) {
    let session = world.connect("a", 1).await;
    let build = world.submit(vec![job("bad", &[]), job("after", &["bad"])]).await.build.id;
    let bad = world.job(build, "bad").await.job.id;
    let error = world.app.retry(build, vec![(bad, None)]).await.unwrap_err();
    assert!(matches!(error, Error::Precondition { code: "NOT_DONE", .. }), "{error}");
    world.run_one(session, failed()).await;
    let after = world.job(build, "after").await.job.id;
    let error = world.app.retry(build, vec![(after, None)]).await.unwrap_err();
    assert!(error.to_string().contains("\"bad\""), "{error}");
    assert!(matches!(error, Error::Precondition { code: "NEED_UNSUCCESSFUL", .. }), "{error}");
    world.app.retry(build, vec![(after, None), (bad, None)]).await.unwrap();
    assert_eq!(world.statuses(build).await, "bad:queued after:blocked");
    world.check().await;
}

async fn a_key_names_one_submission(world: World) {
    let first = submission("default", Some("k"), jobs(2));
    let (build, created) = world.app.submit(first.clone()).await.unwrap();
    assert!(created);
    let (again, created) = world.app.submit(first).await.unwrap();
    assert_eq!((again.build.id, created), (build.build.id, false));
    let error = world.app.submit(submission("default", Some("k"), jobs(3))).await.unwrap_err();
    assert!(matches!(error, Error::Exists { field: "key", .. }), "{error}");
    assert_eq!(world.store.builds(&BuildFilter::default(), None, 10).await.unwrap().len(), 1);
}

async fn what_is_wrong_with_a_submission_is_named_and_nothing_is_stored(world: World) {
    let error =
        world.app.submit(submission("default", None, vec![job("a", &["b"])])).await.unwrap_err();
    let Error::Invalid(violations) = error else { panic!("{error}") };
    assert_eq!(violations[0].field, "spec.jobs[0].needs[0].job");
    let error = world.app.submit(submission("nowhere", None, jobs(1))).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "project", .. }), "{error}");
    let error = world.app.submit(submission("default", Some(""), jobs(1))).await.unwrap_err();
    let Error::Invalid(violations) = error else { panic!("{error}") };
    assert_eq!(violations[0].field, "key");
    assert_eq!(world.store.builds(&BuildFilter::default(), None, 10).await.unwrap(), []);
}

async fn infrastructure_failures_are_tried_again_after_a_backoff(world: World) {
    let session = world.connect("a", 1).await;
    let build = world.submit(jobs(1)).await.build.id;
    let broken = || Outcome::failed(FailureKind::Infra, "no disk");
    world.run_one(session, broken()).await;
    assert_eq!(world.statuses(build).await, "j0:queued");
    assert_eq!(world.claim(session).await, [], "the backoff is not over");
    world.clock.advance(1_000);
    let second = world.run_one(session, broken()).await;
    assert_eq!(second.attempt, 2);
    world.clock.advance(2_000);
    world.run_one(session, broken()).await;
    assert_eq!(world.statuses(build).await, "j0:failed");
    assert_eq!(world.job(build, "j0").await.job.attempt, 3);
    world.check().await;
}

/// The size that a submission may have; on the databases a tenth of it, for the sake of unoptimised builds.
#[tokio::test]
async fn ten_thousand_jobs_are_submitted_cancelled_and_retried() {
    many_jobs(&World::in_memory(), 10_000).await;
}

async fn a_thousand_jobs_are_submitted_cancelled_and_retried(world: World) {
    many_jobs(&world, 1_000).await;
}

async fn many_jobs(world: &World, count: u32) {
    let dependent = |n| job(&format!("j{n}"), &["first"]);
    let mut specs = vec![job("first", &[]), job("second", &[])];
    specs.extend((2..count).map(dependent));
    let build = world.submit(specs).await.build;
    assert_eq!((build.counts.blocked, build.counts.queued), (count - 2, 2));
    let cancelled = world.app.cancel(build.id, None, "").await.unwrap().build;
    assert_eq!(cancelled.counts.cancelled, count);
    let (_, opened) = world.app.retry(build.id, vec![]).await.unwrap();
    assert_eq!(opened.len(), count as usize);
    let row = world.app.build(build.id).await.unwrap().build;
    assert_eq!((row.counts.blocked, row.counts.queued), (count - 2, 2));
    assert_eq!(world.store.inconsistent(1).await.unwrap(), []);
}

async fn pages_of_builds_meet_without_gap(world: World) {
    for n in 0..5 {
        world.clock.advance(n % 2);
        world.submit(jobs(1)).await;
    }
    let mut seen = vec![];
    let mut after = None;
    loop {
        let (page, next) =
            world.app.builds(Some("default"), BuildFilter::default(), after, 2).await.unwrap();
        seen.extend(page.iter().map(|view| view.build.id));
        after = next;
        if next.is_none() {
            break;
        }
    }
    seen.dedup();
    assert_eq!(seen.len(), 5);
}

async fn each_lease_of_a_traced_build_has_its_place(world: World) {
    let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (session, trace) = (world.connect("a", 4).await, text.parse().unwrap());
    let submit = Submit {
        trace: Some(trace),
        ..submission("default", Some("key"), vec![job("a", &[]), job("b", &[])])
    };
    let (build, _) = world.app.submit(submit.clone()).await.unwrap();
    assert_eq!(build.build.annotations["traceparent"], text);
    // Another caller that repeats it is of another trace.
    let again = Submit { trace: None, ..submit };
    assert!(!world.app.submit(again).await.unwrap().1);

    let given = world.claim(session).await;
    let places: Vec<Trace> = given.iter().map(|given| given.trace.unwrap()).collect();
    assert!(places.iter().all(|place| (place.trace, place.sampled) == (trace.trace, true)));
    assert!(places[0].span != places[1].span && !places.contains(&trace));
    for (given, place) in given.iter().zip(places) {
        let again = world.app.given(given.lease).await.unwrap();
        assert_eq!(again.assignment.trace, Some(place), "it is the same when it is said again");
    }
    world.stop().await;
}
