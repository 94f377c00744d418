//! The audit log.

use kiln_server::store::{ActorKind, AuditAct, AuditFilter, AuditRow, SharedStore};

use crate::fixture::Made;

fn row(actor: &str, action: &'static str, object: &str, at: i64) -> AuditRow {
    AuditRow {
        number: 0,
        at,
        actor_kind: ActorKind::Token,
        actor: format!("tok_{actor}"),
        actor_name: actor.to_owned(),
        peer: Some("10.0.0.7".to_owned()),
        act: AuditAct::new(action, format!("id_{object}"), object).with("d").changed(false),
    }
}

async fn append(store: &SharedStore, row: &AuditRow) -> i64 {
    let mut tx = store.begin().await.unwrap();
    let number = tx.append_audit(row).await.unwrap();
    tx.commit().await.unwrap();
    number
}

pub(crate) async fn records_are_numbered_without_gaps_whoever_is_faster(Made { store, .. }: Made) {
    let writers = (0..8).map(|n| {
        let store = store.clone();
        async move {
            for at in 0..5 {
                append(&store, &row(&format!("w{n}"), "token.create", "x", at)).await;
            }
        }
    });
    futures::future::join_all(writers).await;
    let all = store.audit(&AuditFilter::default(), None, 100).await.unwrap();
    let numbers: Vec<i64> = all.iter().map(|row| row.number).collect();
    assert_eq!(numbers, (1..=40).rev().collect::<Vec<_>>());
}

pub(crate) async fn a_record_goes_with_its_transaction(Made { store, .. }: Made) {
    let mut tx = store.begin().await.unwrap();
    assert_eq!(tx.append_audit(&row("a", "token.create", "x", 1)).await.unwrap(), 1);
    drop(tx);
    assert_eq!(store.audit(&AuditFilter::default(), None, 9).await.unwrap(), []);
    let server = AuditRow { peer: None, actor_kind: ActorKind::Server, ..row("", "a.b", "y", 2) };
    assert_eq!(append(&store, &server).await, 1, "the number of what was dropped is free");
    let stored = store.audit(&AuditFilter::default(), None, 9).await.unwrap();
    assert_eq!(stored, [AuditRow { number: 1, ..server }]);
}

pub(crate) async fn filters_and_pages(Made { store, .. }: Made) {
    for (actor, action, object) in [
        ("anna", "token.create", "ci"),
        ("anna", "token.revoke", "ci"),
        ("ben", "tokens.x", "other"),
        ("ben", "agent.pause", "ci"),
        ("anna", "agent.pause", "box"),
    ] {
        let at = append(&store, &row(actor, action, object, 0)).await * 10;
        assert_eq!(at % 10, 0);
    }
    let late = row("late", "z.z", "z", 1_000);
    append(&store, &late).await;
    let all = AuditFilter::default;
    let cases = [
        (all(), vec![6, 5, 4, 3, 2, 1]),
        (AuditFilter { actor: "anna".into(), ..all() }, vec![5, 2, 1]),
        (AuditFilter { actor: "tok_ben".into(), ..all() }, vec![4, 3]),
        (AuditFilter { action: "token".into(), ..all() }, vec![2, 1]),
        (AuditFilter { action: "agent.pause".into(), ..all() }, vec![5, 4]),
        (AuditFilter { action: "agent.p".into(), ..all() }, vec![]),
        (AuditFilter { object: "ci".into(), actor: "ben".into(), ..all() }, vec![4]),
        (AuditFilter { object: "id_box".into(), ..all() }, vec![5]),
        (AuditFilter { from: Some(1_000), ..all() }, vec![6]),
        (AuditFilter { until: Some(1_000), action: "token".into(), ..all() }, vec![2, 1]),
    ];
    for (filter, wanted) in cases {
        let found = store.audit(&filter, None, 9).await.unwrap();
        let found: Vec<i64> = found.iter().map(|row| row.number).collect();
        assert_eq!(found, wanted, "{filter:?}");
    }
    let page = store.audit(&all(), Some(5), 2).await.unwrap();
    assert_eq!(page.iter().map(|row| row.number).collect::<Vec<_>>(), [4, 3]);
}

pub(crate) async fn old_records_go_but_for_the_last(Made { store, .. }: Made) {
    for at in [1, 2, 9, 3, 4] {
        append(&store, &row("a", "token.create", "x", at)).await;
    }
    let delete = async |before, limit| {
        let mut tx = store.begin().await.unwrap();
        let gone = tx.delete_audit(before, limit).await.unwrap();
        tx.commit().await.unwrap();
        gone
    };
    let left = async || {
        let rows = store.audit(&AuditFilter::default(), None, 100).await.unwrap();
        rows.into_iter().map(|row| row.number).collect::<Vec<_>>()
    };
    assert_eq!((delete(5, 1).await, delete(1, 9).await), (1, 0));
    assert_eq!((delete(5, 9).await, left().await), (1, vec![5, 4, 3]));
    assert_eq!((delete(100, 9).await, left().await), (2, vec![5]));
    assert_eq!(delete(100, 9).await, 0);
    assert_eq!(append(&store, &row("a", "token.create", "x", 5)).await, 6);
}
