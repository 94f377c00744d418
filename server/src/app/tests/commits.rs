//! Grouped commits: what shares a transaction, and what a failure does to it.

use futures::future::join_all;
use kiln_core::{build::BuildState, spec::ConcurrencyGroup};

use super::*;
use crate::app::{
    Error,
    submit::{Submitted, insert},
};
use crate::store::BuildFilter;

scenarios! {
    jobs_that_end_at_once_settle_their_build,
    submissions_with_one_key_at_once_make_one_build,
    claims_of_one_group_share_the_jobs,
    replicas_work_side_by_side,
    shutdown_answers_what_was_asked,
}

/// † Folding over a snapshot would leave the build running for ever and its dependent blocked.
async fn jobs_that_end_at_once_settle_their_build(world: World) {
    let session = world.connect("a", 50).await;
    let mut specs = jobs(50);
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    specs.push(job("last", &names.iter().map(String::as_str).collect::<Vec<_>>()));
    let build = world.submit(specs).await.build.id;
    let given = world.claim(session).await;
    assert_eq!(given.len(), 50);
    let said = given.iter().map(|given| world.finish(session, given.lease, Outcome::Succeeded));
    assert!(join_all(said).await.iter().all(|recorded| *recorded == Recorded::Finished));
    let last = world.job(build, "last").await;
    assert_eq!((status(&last), last.open_needs), (Status::Queued, 0));
    world.run_one(session, Outcome::Succeeded).await;
    assert_eq!(world.app.build(build).await.unwrap().build.state(), BuildState::Succeeded);
    world.check().await;
}

#[tokio::test]
async fn a_group_that_fails_is_committed_one_by_one_and_nobody_notices() {
    let memory = Memory::default();
    let world = World::over(Arc::new(memory.clone()));
    world.submit(jobs(1)).await;
    memory.fail_next_commit(2);
    let builds = join_all((0..20).map(|_| world.submit(jobs(2)))).await;
    let ids: std::collections::BTreeSet<_> = builds.iter().map(|view| view.build.id).collect();
    assert_eq!(ids.len(), 20);
    assert_eq!(world.store.builds(&BuildFilter::default(), None, 100).await.unwrap().len(), 21);
    world.check().await;
}

/// Once in its group, three times alone, and again at the head of the next group.
#[tokio::test]
async fn a_command_that_loses_again_and_again_is_first_in_the_next_group_and_no_error() {
    for losses in 1..=9 {
        let memory = Memory::default();
        let world = World::over(Arc::new(memory.clone()));
        let session = world.connect("a", 4).await;
        let build = world.submit(jobs(1)).await.build.id;
        let given = world.claim(session).await.remove(0);
        memory.lose_next_commits(losses);
        let said = world.app.record(session, Record::Start(given.lease));
        let (recorded, builds) =
            tokio::join!(said, join_all((0..3).map(|_| world.submit(jobs(1)))));
        assert_eq!(recorded.unwrap(), Recorded::Started, "after {losses} losses");
        assert_eq!((builds.len(), world.statuses(build).await.as_str()), (3, "j0:running"));
        world.check().await;
    }
}

#[tokio::test]
async fn a_database_that_stays_away_is_an_error_and_nothing_is_acknowledged() {
    let memory = Memory::default();
    let world = World::over(Arc::new(memory.clone()));
    let session = world.connect("a", 1).await;
    let build = world.submit(jobs(1)).await.build.id;
    let given = world.claim(session).await.remove(0);
    memory.fail_next_commit(4);
    assert!(world.app.record(session, Record::Start(given.lease)).await.is_err());
    assert_eq!(world.statuses(build).await, "j0:leased");
    memory.fail_next_commit(0);
    world.start(session, given.lease).await;
    world.check().await;
}

async fn submissions_with_one_key_at_once_make_one_build(world: World) {
    let asked = (0..10).map(|_| world.app.submit(submission("default", Some("k"), jobs(1))));
    let answers: Vec<_> = join_all(asked).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|(_, created)| *created).count(), 1);
    assert!(answers.iter().all(|(view, _)| view.build.id == answers[0].0.build.id));
    world.check().await;
}

async fn claims_of_one_group_share_the_jobs(world: World) {
    let mut sessions = vec![];
    for n in 0..10 {
        sessions.push(world.connect(&format!("agent-{n}"), 3).await);
    }
    world.submit(jobs(25)).await;
    let given = join_all(sessions.iter().map(|session| world.claim(*session))).await;
    let mut all: Vec<JobId> = given.iter().flat_map(|given| ids(given)).collect();
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!((count, all.len()), (25, 25));
    world.check().await;
}

/// Two replicas with several committers, over builds that share groups, a limit and dependents.
async fn replicas_work_side_by_side(world: World) {
    let other = World::idle(Arc::clone(&world.store), Arc::clone(&world.clock));
    other.app.start_with(&other.tracker, &other.shutdown, 3);
    world.app.create_project("p", None, 6).await.unwrap();
    let group = |limit, name: &str, needs: &[&str]| JobSpec {
        concurrency: Some(ConcurrencyGroup { name: format!("g{limit}"), limit }),
        ..job(name, needs)
    };
    let mut builds = vec![];
    for _ in 0..4 {
        let mut specs = jobs(6);
        specs.extend([group(1, "one", &["j0"]), group(2, "two", &["j1", "j2"])]);
        specs.push(job("last", &["one", "two", "j5"]));
        builds.push(world.submit_to("p", specs).await.build.id);
    }
    let mut agents = vec![];
    for n in 0..4 {
        let side = if n % 2 == 0 { &world } else { &other };
        agents.push((side, side.connect(&format!("agent-{n}"), 3).await));
    }
    let work = join_all(agents.iter().map(|(side, session)| work(side, *session, &builds)));
    let worked = tokio::time::timeout(Duration::from_mins(2), work).await.expect("all builds end");
    assert_eq!(worked.iter().sum::<usize>(), 4 * 9);
    world.check().await;
}

/// Takes and ends jobs until all builds are done.
async fn work(side: &World, session: SessionId, builds: &[BuildId]) -> usize {
    let mut done = 0;
    loop {
        let given = side.claim(session).await;
        done += given.len();
        join_all(given.iter().map(|given| async {
            side.start(session, given.lease).await;
            side.finish(session, given.lease, Outcome::Succeeded).await;
        }))
        .await;
        let mut open = false;
        for build in builds {
            open |= !side.app.build(*build).await.unwrap().build.state().is_done();
        }
        if !open {
            return done;
        }
        tokio::task::yield_now().await;
    }
}

async fn shutdown_answers_what_was_asked(world: World) {
    world.submit(jobs(1)).await;
    let (app, store) = (world.app.clone(), Arc::clone(&world.store));
    let asked = join_all((0..50).map(|_| app.submit(submission("default", None, jobs(1)))));
    let (answers, ()) = tokio::join!(asked, world.stop());
    // Asked before or after the end, each is told what became of it.
    let busy = |error: &Error| matches!(error, Error::Busy(_));
    assert!(answers.iter().all(|answer| answer.as_ref().map_or_else(busy, |_| true)));
    let done = answers.iter().filter(|answer| answer.is_ok()).count();
    let stored = store.builds(&BuildFilter::default(), None, 100).await.unwrap().len();
    assert_eq!(stored, done + 1);
    let late = app.submit(submission("default", None, jobs(1))).await.unwrap_err();
    assert!(busy(&late), "{late}");
}

/// A commit whose answer was lost may have been done: the same build must not be made twice.
#[tokio::test]
async fn a_submission_whose_commit_was_done_after_all_is_found_again() {
    let world = World::in_memory();
    let asked = submission("default", None, jobs(2));
    let new = world.app.prepare(asked).await.unwrap().0;
    for again in [false, true] {
        let mut tx = world.store.begin().await.unwrap();
        let inserted = insert(&world.app, &mut *tx, &[&new], again).await.unwrap();
        assert!(matches!(&inserted.answers[0], Submitted::Created(row) if row.id == new.build.id));
        tx.commit().await.unwrap();
    }
    assert_eq!(world.store.jobs_of(new.build.id).await.unwrap().len(), 2);
    world.check().await;
}
