//! Every sequence of six events, and the edges by name.

use uuid::Uuid;

use super::*;

fn lease(n: u128) -> LeaseId {
    LeaseId::from_uuid(Uuid::from_u128(n))
}

fn blocked() -> Job {
    Job {
        id: JobId::from_uuid(Uuid::from_u128(1)),
        build: BuildId::from_uuid(Uuid::from_u128(2)),
        state: State::Blocked,
        round: 1,
        attempt: 0,
        attempts: 0,
        returns: 0,
        lease: None,
        answered: None,
        queued_at: 0,
        queue_timeout_ms: 10,
        retry: RetryPolicy { max_attempts: 2, backoff_ms: 0, ..RetryPolicy::default() },
    }
}

fn queued() -> Job {
    blocked().apply(Event::Unblock, 0).unwrap().0
}

fn leased() -> Job {
    queued().apply(Event::Lease(lease(1)), 0).unwrap().0
}

fn running() -> Job {
    leased().apply(Event::Start(lease(1)), 0).unwrap().0
}

fn infra() -> Outcome {
    Outcome::failed(FailureKind::Infra, "disk")
}

fn user() -> Outcome {
    Outcome::Failed { kind: FailureKind::User, exit_code: Some(1), message: "exit code 1".into() }
}

fn alphabet() -> Vec<Event> {
    let mut events = vec![
        Event::Unblock,
        Event::Skip(SkipReason::NeedFailed),
        Event::Skip(SkipReason::NeedCancelled),
        Event::Overdue,
        Event::Cancel,
        Event::Retry { round: 1, blocked: false },
        Event::Retry { round: 1, blocked: true },
        Event::Retry { round: 2, blocked: false },
    ];
    for n in [1, 2] {
        events.extend([
            Event::Lease(lease(n)),
            Event::Start(lease(n)),
            Event::Return(lease(n)),
            Event::Finish(lease(n), Outcome::Succeeded),
            Event::Finish(lease(n), infra()),
            Event::Finish(lease(n), user()),
            Event::Expire(lease(n)),
        ]);
    }
    events
}

/// What a watcher counts while the events go by.
#[derive(Clone, Default)]
struct Seen {
    settled_rounds: Vec<u32>,
    leases: Vec<LeaseId>,
    answered: Vec<LeaseId>,
}

fn explore(job: &Job, seen: &Seen, depth: u32, visited: &mut u64) {
    if depth == 0 {
        return;
    }
    for event in alphabet() {
        *visited += 1;
        // A lease id is given once.
        if matches!(event, Event::Lease(id) if seen.leases.contains(&id)) {
            continue;
        }
        let mut seen = seen.clone();
        let before = job.clone();
        let Ok((after, effects)) = job.clone().apply(event.clone(), 20) else { continue };
        check(&before, &event, &after, &effects, &mut seen);
        explore(&after, &seen, depth - 1, visited);
    }
}

fn check(before: &Job, event: &Event, after: &Job, effects: &[Effect], seen: &mut Seen) {
    let story = format!("{before:?} -- {event:?} --> {after:?} {effects:?}");
    let settles = effects.iter().filter(|effect| matches!(effect, Effect::Settle(_))).count();
    if settles > 0 {
        assert!(!seen.settled_rounds.contains(&after.round), "settled twice in a round: {story}");
        seen.settled_rounds.push(after.round);
    }
    assert_eq!(settles == 1, matches!(after.state, State::Done(_)), "done means settled: {story}");
    assert!(after.attempt <= after.retry.max_attempts, "too many attempts: {story}");
    assert!(after.round >= before.round && after.round <= before.round + 1, "{story}");
    assert_eq!(after.round > before.round, matches!(event, Event::Retry { .. }), "{story}");
    assert_eq!(
        effects.contains(&Effect::Wake),
        matches!(after.state, State::Queued { .. }),
        "what enters the queue wakes: {story}"
    );
    match event {
        Event::Lease(id) => seen.leases.push(*id),
        Event::Start(id) | Event::Return(id) | Event::Expire(id) => {
            assert_eq!(before.open_lease(), Some(*id), "a stale lease changed something: {story}");
        }
        Event::Finish(id, _) => {
            assert_eq!(before.open_lease(), Some(*id), "a stale lease changed something: {story}");
            assert!(!seen.answered.contains(id), "one lease was answered twice: {story}");
            seen.answered.push(*id);
        }
        _ => {}
    }
    if before.cancelling()
        && matches!(event, Event::Finish(..) | Event::Expire(_) | Event::Return(_))
    {
        let succeeded = matches!(event, Event::Finish(_, Outcome::Succeeded));
        let wanted = if succeeded { Status::Succeeded } else { Status::Cancelled };
        assert_eq!(after.status(), wanted, "{story}");
    }
    if before.cancelling() && after.open_lease().is_some() {
        assert!(after.cancelling(), "a cancel was forgotten: {story}");
    }
}

#[test]
fn every_sequence_of_six_events_keeps_the_rules() {
    let mut visited = 0;
    explore(&blocked(), &Seen::default(), 6, &mut visited);
    explore(&queued(), &Seen::default(), 6, &mut visited);
    let seen = Seen { leases: vec![lease(1)], ..Seen::default() };
    explore(&running(), &seen, 6, &mut visited);
    assert!(visited > 30_000, "only {visited} steps were explored");
}

#[test]
fn a_repeated_answer_is_told_apart_from_a_stale_one() {
    let (done, _) = running().apply(Event::Finish(lease(1), user()), 1).unwrap();
    assert_eq!(done.clone().apply(Event::Finish(lease(1), user()), 2), Err(Rejected::Repeated));
    assert_eq!(done.apply(Event::Finish(lease(9), user()), 2), Err(Rejected::Stale));

    let (expired, _) = running().apply(Event::Expire(lease(1)), 1).unwrap();
    assert_eq!(
        expired.clone().apply(Event::Finish(lease(1), Outcome::Succeeded), 2),
        Err(Rejected::Stale)
    );
    assert_eq!(expired.apply(Event::Start(lease(1)), 2), Err(Rejected::Stale));
}

#[test]
fn a_repeated_answer_of_a_job_that_is_tried_again_is_acknowledged() {
    let (queued, effects) = running().apply(Event::Finish(lease(1), infra()), 1).unwrap();
    assert_eq!(effects, [Effect::Wake]);
    let (leased, _) = queued.apply(Event::Lease(lease(2)), 2).unwrap();
    assert_eq!(leased.apply(Event::Finish(lease(1), infra()), 3), Err(Rejected::Repeated));
}

#[test]
fn a_lease_that_comes_back_spends_no_attempt_but_not_for_ever() {
    let mut job = queued();
    for n in 0..=u128::from(MAX_RETURNS) {
        assert_eq!((job.attempt, job.status()), (0, Status::Queued), "return {n}");
        job = job.apply(Event::Lease(lease(n)), 0).unwrap().0;
        job = job.apply(Event::Return(lease(n)), 0).unwrap().0;
    }
    assert!(matches!(job.state, State::Done(Outcome::Failed { kind: FailureKind::Infra, .. })));
}

#[test]
fn attempts_end_and_wait_in_between() {
    let mut slow = running();
    slow.retry.backoff_ms = 100;
    let (queued, _) = slow.apply(Event::Expire(lease(1)), 50).unwrap();
    assert_eq!(queued.state, State::Queued { not_before: 150 });
    assert_eq!(queued.clone().apply(Event::Lease(lease(2)), 149), Err(Rejected::TooEarly));
    assert!(queued.is_due(49), "the clock went back behind the beginning of the wait");
    let (leased, _) = queued.apply(Event::Lease(lease(2)), 150).unwrap();
    let (done, _) = leased.apply(Event::Expire(lease(2)), 200).unwrap();
    assert!(matches!(done.state, State::Done(Outcome::Failed { kind: FailureKind::Lost, .. })));
}

#[test]
fn a_retry_opens_one_round() {
    let (done, _) = running().apply(Event::Finish(lease(1), user()), 1).unwrap();
    let (again, effects) = done.apply(Event::Retry { round: 1, blocked: false }, 2).unwrap();
    assert_eq!((again.round, again.attempt, effects.len()), (2, 0, 1));
    assert_eq!(
        again.clone().apply(Event::Retry { round: 1, blocked: false }, 3),
        Err(Rejected::Repeated)
    );
    assert_eq!(again.apply(Event::Retry { round: 2, blocked: false }, 3), Err(Rejected::NotDone));
}

#[test]
fn a_job_is_overdue_only_in_the_queue() {
    assert_eq!(queued().apply(Event::Overdue, 9), Err(Rejected::TooEarly));
    let (done, _) = queued().apply(Event::Overdue, 10).unwrap();
    assert!(matches!(done.state, State::Done(Outcome::Failed { kind: FailureKind::Timeout, .. })));
    assert_eq!(leased().apply(Event::Overdue, 99), Err(Rejected::NotQueued));
}
