//! Hello and what agents say of their leases.

use kiln_core::{agent::Load, job::MAX_RETURNS, session::LeasePhase};

use super::*;
use crate::app::Error;

scenarios! {
    an_agent_that_forgot_everything_gives_back_and_loses,
    listed_leases_go_on_in_the_new_session,
    a_result_is_kept_until_it_is_acknowledged_and_an_old_lease_is_abandoned,
    another_agent_has_no_say_in_a_lease,
    a_closed_session_claims_nothing,
    a_copy_of_an_identity_is_refused_while_the_other_one_lives,
    giving_back_spends_no_attempt_and_ends_after_ten_times,
    giving_back_what_was_started_is_a_failure_of_the_machinery,
    an_evicted_agent_loses_its_leases_and_its_cancelled_jobs_end,
    hellos_of_a_moment_are_answered_each_for_itself,
}

/// Two jobs given to an agent, the second of them started.
async fn one_leased_one_running(world: &World) -> (AgentId, BuildId, Vec<Assignment>) {
    let agent = world.enrol("a").await;
    let session = world.hello(agent, 1, 2, &[]).await.session;
    let build = world.submit(jobs(2)).await.build.id;
    let given = world.claim(session).await;
    world.start(session, given[1].lease).await;
    (agent, build, given)
}

async fn an_agent_that_forgot_everything_gives_back_and_loses(world: World) {
    let (agent, build, _) = one_leased_one_running(&world).await;
    let welcome = world.hello(agent, 2, 2, &[]).await;
    assert!(welcome.reconciled.keep.is_empty());
    assert_eq!(world.statuses(build).await, "j0:queued j1:queued");
    let jobs = world.jobs(build).await;
    assert_eq!(
        (jobs["j0"].job.attempt, jobs["j1"].job.attempt),
        (0, 1),
        "only the started one is spent"
    );
    world.check().await;
}

async fn listed_leases_go_on_in_the_new_session(world: World) {
    let (agent, build, given) = one_leased_one_running(&world).await;
    let journal = [(given[0].lease, Held::Taken), (given[1].lease, Held::Running)];
    let welcome = world.hello(agent, 2, 2, &journal).await;
    assert_eq!(welcome.reconciled.keep.len(), 2);
    assert_eq!(world.statuses(build).await, "j0:running j1:running", "Hello counts as Started");
    for lease in world.store.open_leases(Some(&[agent])).await.unwrap() {
        assert_eq!((lease.session, lease.phase), (welcome.session, LeasePhase::Running));
    }
    assert_eq!(world.claim(welcome.session).await, [], "its slots are taken");
    for given in &given {
        assert_eq!(
            world.finish(welcome.session, given.lease, Outcome::Succeeded).await,
            Recorded::Finished
        );
    }
    world.check().await;
}

async fn a_result_is_kept_until_it_is_acknowledged_and_an_old_lease_is_abandoned(world: World) {
    let (agent, build, given) = one_leased_one_running(&world).await;
    let session = world.hello(agent, 2, 2, &[(given[1].lease, Held::Running)]).await.session;
    world.finish(session, given[1].lease, Outcome::Succeeded).await;
    let journal = [(given[1].lease, Held::Finished), (given[0].lease, Held::Running)];
    let welcome = world.hello(agent, 3, 2, &journal).await;
    assert_eq!(welcome.reconciled.keep, [(given[1].lease, false)]);
    assert_eq!(welcome.reconciled.abandon, [given[0].lease], "it went back to the queue");
    let again = world.finish(welcome.session, given[1].lease, failed()).await;
    assert_eq!(again, Recorded::Finished, "acknowledged again");
    assert_eq!(world.finish(welcome.session, given[0].lease, failed()).await, Recorded::Stale);
    assert_eq!(world.statuses(build).await, "j0:queued j1:succeeded");
    world.check().await;
}

async fn another_agent_has_no_say_in_a_lease(world: World) {
    let (_, build, given) = one_leased_one_running(&world).await;
    let other = world.enrol("other").await;
    let welcome = world.hello(other, 1, 1, &[(given[1].lease, Held::Running)]).await;
    assert_eq!(welcome.reconciled.abandon, [given[1].lease]);
    let recorded = world.finish(welcome.session, given[1].lease, Outcome::Succeeded).await;
    assert_eq!(recorded, Recorded::Stale);
    assert_eq!(world.statuses(build).await, "j0:leased j1:running");
}

async fn a_closed_session_claims_nothing(world: World) {
    let agent = world.enrol("a").await;
    let old = world.hello(agent, 1, 1, &[]).await.session;
    world.submit(jobs(1)).await;
    let new = world.hello(agent, 2, 1, &[]).await.session;
    assert_eq!(world.claim(old).await, []);
    assert!(!world.app.beat(old, Load::default()).await.unwrap());
    assert!(world.app.beat(new, Load::default()).await.unwrap());
    assert_eq!(world.claim(new).await.len(), 1);
}

async fn a_copy_of_an_identity_is_refused_while_the_other_one_lives(world: World) {
    let agent = world.enrol("a").await;
    let first = world.hello(agent, 5, 1, &[]).await.session;
    let copy = Hello { instance: "copy".into(), epoch: 6, profile: profile(1), journal: vec![] };
    let error = world.app.hello(agent, copy.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Precondition { code: "AGENT_CONNECTED", .. }), "{error}");
    let late = Hello { instance: "machine".into(), ..copy.clone() };
    let late = world.app.hello(agent, Hello { epoch: 4, ..late }).await.unwrap_err();
    assert!(matches!(late, Error::Precondition { code: "HELLO_OUTDATED", .. }), "{late}");
    assert!(world.app.beat(first, Load::default()).await.unwrap(), "the first one goes on");
    world.clock.advance(60_000);
    world.app.hello(agent, copy).await.unwrap();
    assert!(!world.app.beat(first, Load::default()).await.unwrap());
}

async fn giving_back_spends_no_attempt_and_ends_after_ten_times(world: World) {
    let session = world.connect("a", 1).await;
    let build = world.submit(jobs(1)).await.build.id;
    for _ in 0..=MAX_RETURNS {
        let job = world.job(build, "j0").await;
        assert_eq!((status(&job), job.job.attempt), (Status::Queued, 0));
        let given = world.claim(session).await.remove(0);
        assert_eq!(given.attempt, 1);
        let said = Record::Return(given.lease, "no space".into());
        assert_eq!(world.app.record(session, said).await.unwrap(), Recorded::Returned);
        let told = world.app.explain(given.job).await.unwrap();
        let known = told.reasons.iter().any(|reason| reason.message.contains("no space"));
        assert!(known || told.summary.contains("no agent started it"), "{told:?}");
    }
    assert_eq!(world.statuses(build).await, "j0:failed");
    world.check().await;
}

async fn giving_back_what_was_started_is_a_failure_of_the_machinery(world: World) {
    let session = world.connect("a", 1).await;
    let build = world.submit(jobs(1)).await.build.id;
    let given = world.claim(session).await.remove(0);
    world.start(session, given.lease).await;
    let said = Record::Return(given.lease, "backend went away".into());
    assert_eq!(world.app.record(session, said).await.unwrap(), Recorded::Finished);
    let job = world.job(build, "j0").await;
    assert_eq!((status(&job), job.job.attempt), (Status::Queued, 1), "it is tried again");
    world.check().await;
}

async fn an_evicted_agent_loses_its_leases_and_its_cancelled_jobs_end(world: World) {
    let (agent, build, given) = one_leased_one_running(&world).await;
    world.app.cancel(build, Some(given[1].job), "").await.unwrap();
    assert_eq!(world.app.evict_agent("a").await.unwrap(), 2);
    assert_eq!(world.statuses(build).await, "j0:queued j1:cancelled");
    assert!(world.store.agent(agent).await.unwrap().is_none());
    assert!(matches!(world.app.facts(agent).await.unwrap_err(), Error::Evicted));
    let error = world.app.evict_agent("a").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "agent", .. }), "{error}");
    world.check().await;
}

async fn hellos_of_a_moment_are_answered_each_for_itself(world: World) {
    let (agent, build, given) = one_leased_one_running(&world).await;
    let other = world.enrol("b").await;
    let unknown = AgentId::from_uuid(world.clock.id());
    let hello = |of, epoch, listed: &[&Assignment]| {
        let journal = listed.iter().map(|given| (given.lease, Held::Running)).collect();
        let instance = "machine".to_owned();
        world.app.hello(of, Hello { instance, epoch, profile: profile(2), journal })
    };
    let (first, again, gone, beside) = tokio::join!(
        hello(agent, 2, &[&given[1]]),
        hello(agent, 3, &[&given[1]]),
        hello(unknown, 1, &[]),
        hello(other, 1, &[&given[0]]),
    );
    let (first, again, beside) = (first.unwrap(), again.unwrap(), beside.unwrap());
    assert_eq!(first.reconciled.give_back, [given[0].lease]);
    assert_eq!(again.reconciled.keep, [(given[1].lease, false)]);
    assert_eq!(beside.reconciled.abandon, [given[0].lease], "it is another agent's");
    assert!(matches!(gone.unwrap_err(), Error::NotFound { what: "agent", .. }));
    let mut open: Vec<_> = world.store.sessions().await.unwrap().iter().map(|row| row.id).collect();
    open.sort_unstable();
    assert_eq!(open, [again.session, beside.session], "the first of them is closed");
    assert_eq!(world.statuses(build).await, "j0:queued j1:running");
    let recorded = world.finish(again.session, given[1].lease, Outcome::Succeeded).await;
    assert_eq!(recorded, Recorded::Finished);
    world.check().await;
}
