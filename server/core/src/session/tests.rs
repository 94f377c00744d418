use uuid::Uuid;

use super::*;

fn lease(n: u128) -> LeaseId {
    LeaseId::from_uuid(Uuid::from_u128(n))
}

fn session() -> Session {
    Session::open(SessionId::from_uuid(Uuid::from_u128(1)), &Reconciled::default())
}

fn said(session: &mut Session) -> Vec<Say> {
    session.take().into_iter().collect()
}

fn report() -> Report {
    Report { outcome: Outcome::Succeeded, artifacts: vec![], log_lengths: BTreeMap::new() }
}

#[test]
fn an_assign_is_said_again_until_it_is_answered() {
    let mut session = session();
    session.apply(Input::Given(vec![lease(1)]));
    assert_eq!(said(&mut session), [Say::Assign(lease(1))]);
    assert_eq!(said(&mut session), []);
    session.apply(Input::Heartbeat);
    assert_eq!(said(&mut session), [Say::Assign(lease(1)), Say::Beat]);
    assert_eq!(session.apply(Input::Started(lease(1))), Some(Record::Start(lease(1))));
    session.apply(Input::Recorded(lease(1), Recorded::Started));
    session.apply(Input::Heartbeat);
    assert_eq!(said(&mut session), [Say::Beat]);
}

#[test]
fn a_cancel_is_said_again_until_the_lease_ends() {
    let mut session = session();
    session.apply(Input::Given(vec![lease(1)]));
    session.apply(Input::Cancelling(lease(1)));
    assert_eq!(said(&mut session), [Say::Revoke(lease(1)), Say::Assign(lease(1))]);
    session.apply(Input::Cancelling(lease(1)));
    assert_eq!(said(&mut session), []);
    session.apply(Input::Heartbeat);
    assert!(said(&mut session).contains(&Say::Revoke(lease(1))));
    session.apply(Input::Finished(lease(1), report()));
    session.apply(Input::Recorded(lease(1), Recorded::Finished));
    assert_eq!(said(&mut session), [Say::Ack(lease(1))]);
    session.apply(Input::Heartbeat);
    assert_eq!(said(&mut session), [Say::Beat]);
}

#[test]
fn a_stale_word_is_answered_with_abandon() {
    let mut session = session();
    session.apply(Input::Finished(lease(7), report()));
    session.apply(Input::Recorded(lease(7), Recorded::Stale));
    assert_eq!(said(&mut session), [Say::Abandon(lease(7))]);
}

/// Every pair of what a journal can list and what the rows can say.
#[test]
fn every_pair_of_journal_and_rows_is_reconciled() {
    let held = [None, Some(Held::Taken), Some(Held::Running), Some(Held::Finished)];
    let phases = [
        None,
        Some(LeasePhase::Leased),
        Some(LeasePhase::Running),
        Some(LeasePhase::Finished),
        Some(LeasePhase::Void),
    ];
    for held in held {
        for phase in phases {
            let journal: Vec<_> = held.map(|held| (lease(1), held)).into_iter().collect();
            let rows: Vec<_> = phase
                .map(|phase| LeaseFacts { lease: lease(1), phase, cancelling: false })
                .into_iter()
                .collect();
            let result = reconcile(&journal, &rows);
            let story = format!("{held:?} {phase:?} {result:?}");
            let open = phase.is_some_and(LeasePhase::is_open);
            if held.is_some() {
                assert_eq!(
                    result.keep.len() + result.abandon.len(),
                    1,
                    "each listed lease is kept or abandoned: {story}"
                );
                let kept_report =
                    held == Some(Held::Finished) && phase == Some(LeasePhase::Finished);
                assert_eq!(result.keep.len() == 1, open || kept_report, "{story}");
            } else {
                assert_eq!((result.keep.len(), result.abandon.len()), (0, 0), "{story}");
            }
            assert_eq!(
                !result.give_back.is_empty(),
                held.is_none() && phase == Some(LeasePhase::Leased),
                "{story}"
            );
            assert_eq!(
                !result.expire.is_empty(),
                held.is_none() && phase == Some(LeasePhase::Running),
                "{story}"
            );
            assert!(
                result.start.iter().all(|lease| result.keep.iter().any(|(kept, _)| kept == lease)),
                "{story}"
            );
        }
    }
}

#[test]
fn a_kept_lease_with_a_cancel_is_revoked_at_once() {
    let kept = Reconciled { keep: vec![(lease(1), true)], ..Reconciled::default() };
    let mut session = Session::open(SessionId::from_uuid(Uuid::from_u128(1)), &kept);
    assert_eq!(said(&mut session), [Say::Revoke(lease(1))]);
}
