use std::collections::BTreeMap;

use kiln_core::{
    id::{BuildId, JobId},
    outcome::Outcome,
    spec::JobSpec,
};
use uuid::Uuid;

use super::*;

fn lease(n: u128) -> LeaseId {
    LeaseId::from_uuid(Uuid::from_u128(n))
}

fn session(n: u128) -> SessionId {
    SessionId::from_uuid(Uuid::from_u128(n))
}

fn assignment(n: u128) -> Assignment {
    Assignment {
        lease: lease(n),
        job: JobId::from_uuid(Uuid::from_u128(n)),
        build: BuildId::from_uuid(Uuid::from_u128(n)),
        project: "default".into(),
        attempt: 1,
        spec: JobSpec::default(),
        inputs: vec![],
        exclusive: false,
        trace: None,
    }
}

fn report() -> Report {
    Report { outcome: Outcome::Succeeded, artifacts: vec![], log_lengths: BTreeMap::new() }
}

fn welcome(n: u128) -> Input {
    Input::Welcome { session: session(n), grace_ms: 60_000, keep: vec![], abandon: vec![] }
}

fn assign(leases: &mut Leases, session_number: u128, n: u128) -> Vec<Output> {
    leases.apply(
        Input::Assign { session: session(session_number), assignment: Box::new(assignment(n)) },
        0,
    )
}

fn connected() -> Leases {
    let mut leases = Leases::default();
    leases.apply(welcome(1), 0);
    leases
}

#[test]
fn a_lease_is_saved_before_it_runs_and_before_it_is_said() {
    let mut leases = connected();
    assert_eq!(
        assign(&mut leases, 1, 1),
        [Output::Save(lease(1)), Output::Run(Box::new(assignment(1)))]
    );
    let started = leases.apply(Input::Started(lease(1)), 0);
    assert_eq!(started, [Output::Save(lease(1)), Output::Send(Frame::Started(lease(1)))]);
    let ended = leases.apply(Input::Ended(lease(1), report()), 0);
    assert_eq!(ended, [Output::Save(lease(1)), Output::Send(Frame::Finished(lease(1), report()))]);
}

#[test]
fn an_assign_for_another_session_is_ignored() {
    let mut leases = connected();
    assert_eq!(assign(&mut leases, 2, 1), []);
    leases.apply(Input::Disconnected, 0);
    assert_eq!(assign(&mut leases, 1, 1), []);
    assert_eq!(leases.journal(), []);
}

#[test]
fn a_repeated_assign_runs_nothing_twice() {
    let mut leases = connected();
    assign(&mut leases, 1, 1);
    assert_eq!(assign(&mut leases, 1, 1), []);
    leases.apply(Input::Started(lease(1)), 0);
    assert_eq!(assign(&mut leases, 1, 1), [Output::Send(Frame::Started(lease(1)))]);
}

#[test]
fn a_lease_leaves_the_journal_on_the_ack_of_result_and_log() {
    for log_first in [true, false] {
        let mut leases = connected();
        assign(&mut leases, 1, 1);
        leases.apply(Input::Ended(lease(1), report()), 0);
        let mut inputs = [Input::Ack(lease(1)), Input::LogSealed(lease(1))];
        if log_first {
            inputs.reverse();
        }
        let [first, second] = inputs;
        assert_eq!(leases.apply(first, 0), []);
        assert_eq!(leases.journal(), [(lease(1), Held::Finished)]);
        assert_eq!(leases.apply(second, 0), [Output::Remove(lease(1))]);
        assert_eq!(leases.journal(), []);
    }
}

#[test]
fn a_restart_lists_everything_and_says_again_what_is_kept() {
    let running = Entry { state: EntryState::Running, ..Entry::taken(assignment(1), 0) };
    let finished =
        Entry { state: EntryState::Finished(report()), ..Entry::taken(assignment(2), 0) };
    let mut leases = Leases::restore([running, finished], true);
    assert_eq!(leases.journal(), [(lease(1), Held::Running), (lease(2), Held::Finished)]);
    let keep = vec![(lease(1), true), (lease(2), false)];
    let out =
        leases.apply(Input::Welcome { session: session(1), grace_ms: 1, keep, abandon: vec![] }, 0);
    assert_eq!(
        out,
        [
            Output::Send(Frame::Started(lease(1))),
            Output::Cancel(lease(1)),
            Output::Send(Frame::Finished(lease(2), report())),
        ]
    );
}

#[test]
fn an_abandoned_lease_is_killed_and_forgotten() {
    let mut leases = connected();
    assign(&mut leases, 1, 1);
    assert_eq!(
        leases.apply(Input::Abandon(lease(1)), 0),
        [Output::Kill(lease(1)), Output::Remove(lease(1))]
    );
    assert_eq!(leases.apply(Input::Ended(lease(1), report()), 0), []);
}

#[test]
fn a_leaving_agent_refuses_work_and_exits_when_it_has_none() {
    let mut leases = connected();
    assign(&mut leases, 1, 1);
    assert_eq!(leases.apply(Input::Drain, 0), []);
    let refused = Frame::Refused(lease(2), "the agent is leaving".to_owned());
    assert_eq!(assign(&mut leases, 1, 2), [Output::Send(refused)]);
    leases.apply(Input::Ended(lease(1), report()), 0);
    leases.apply(Input::LogSealed(lease(1)), 0);
    assert_eq!(leases.apply(Input::Ack(lease(1)), 0), [Output::Remove(lease(1)), Output::Exit]);
}

#[test]
fn an_exclusive_job_ends_before_its_lease_can_go_to_another_agent() {
    let mut leases = connected();
    let exclusive = Assignment { exclusive: true, ..assignment(1) };
    leases.apply(Input::Assign { session: session(1), assignment: Box::new(exclusive) }, 0);
    assign(&mut leases, 1, 2);
    leases.apply(Input::Disconnected, 0);
    assert_eq!(leases.apply(Input::Tick, 44_999), []);
    assert_eq!(leases.apply(Input::Tick, 45_000), [Output::Forsake(lease(1))]);
}

#[test]
fn after_a_reboot_and_in_a_copy_only_results_are_left() {
    let entry = |n, state| Entry { state, ..Entry::taken(assignment(n), 0) };
    let entries = [
        entry(1, EntryState::Taken),
        entry(2, EntryState::Running),
        entry(3, EntryState::Finished(report())),
    ];
    let mut leases = Leases::restore(entries, false);
    assert_eq!(leases.journal(), [(lease(3), Held::Finished)]);
    let keep = vec![(lease(3), false)];
    let out =
        leases.apply(Input::Welcome { session: session(1), grace_ms: 1, keep, abandon: vec![] }, 0);
    assert_eq!(out, [Output::Send(Frame::Finished(lease(3), report()))]);
}

#[test]
fn an_evicted_agent_ends_everything_and_exits() {
    let mut leases = connected();
    assign(&mut leases, 1, 1);
    assign(&mut leases, 1, 2);
    leases.apply(Input::Ended(lease(2), report()), 0);
    let out = leases.apply(Input::Evicted, 0);
    let gone = |n| Output::Remove(lease(n));
    assert_eq!(out, [Output::Kill(lease(1)), gone(1), gone(2), Output::Exit]);
    assert!(!leases.is_connected());
    assert_eq!(Leases::default().apply(Input::Evicted, 0), [Output::Exit], "it has nothing");
}
