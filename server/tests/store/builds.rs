//! Projects, builds, events.

use kiln_core::{
    build::{BuildState, Counts},
    event::{Change, Record},
    id::{AgentId, BuildId},
    job::Status,
    session::LeasePhase,
};
use kiln_server::store::{BuildFilter, BuildRow, Error, NewJob, SharedStore};

use crate::fixture::{Made, build, job, lease, new_job, project, seed, uuid};

pub(crate) async fn projects_round_trip_and_names_are_unique(Made { store, .. }: Made) {
    let mut tx = store.begin().await.unwrap();
    tx.insert_project(&project(2)).await.unwrap();
    tx.insert_project(&project(1)).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let mut twin = project(3);
    twin.name = "project-1".into();
    let error = tx.insert_project(&twin).await.unwrap_err();
    assert!(
        matches!(&error, Error::Exists { what: "project", name } if name == "project-1"),
        "{error:?}"
    );
    drop(tx);

    let mut tx = store.begin().await.unwrap();
    let mut rows = tx.lock_projects(&[project(2).id, project(1).id, project(9).id]).await.unwrap();
    assert_eq!(rows, [project(1), project(2)]);
    rows[0].weight = 7;
    rows[0].max_running = u32::MAX;
    rows[0].paused = true;
    rows[0].running = 3;
    tx.save_projects(&rows).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.projects().await.unwrap(), rows);
    assert_eq!(store.project("project-1").await.unwrap().as_ref(), rows.first());
    assert_eq!(store.project("nobody").await.unwrap(), None);
}

pub(crate) async fn builds_round_trip_and_save_what_changes(Made { store, .. }: Made) {
    let mut tx = store.begin().await.unwrap();
    tx.insert_project(&project(1)).await.unwrap();
    let mut row = build(10, &project(1));
    row.key = Some("key".to_owned());
    row.priority = -5;
    row.annotations = [("a".to_owned(), "ü\n\"".to_owned())].into();
    row.counts.add(Status::Queued, false);
    tx.insert_builds(std::slice::from_ref(&row)).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.build(row.id).await.unwrap(), Some(row.clone()));

    let mut tx = store.begin().await.unwrap();
    let counts = Counts { blocked: 1, tolerated: 2, ..Counts::default() };
    row = BuildRow { counts, last_event: 9, finished_at: Some(5), ..row };
    tx.save_builds(std::slice::from_ref(&row)).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.build(row.id).await.unwrap(), Some(row));
    assert_eq!(store.build(build(11, &project(1)).id).await.unwrap(), None);
}

pub(crate) async fn a_key_is_used_once_even_within_a_batch(Made { store, .. }: Made) {
    let keyed = |n, key: &str| BuildRow { key: Some(key.into()), ..build(n, &project(1)) };
    let mut tx = store.begin().await.unwrap();
    tx.insert_project(&project(1)).await.unwrap();
    tx.insert_project(&project(2)).await.unwrap();
    assert_eq!(tx.insert_builds(&[keyed(10, "a")]).await.unwrap().len(), 1);
    tx.commit().await.unwrap();

    let mut tx = store.begin().await.unwrap();
    let elsewhere = BuildRow { project: project(2).id, ..keyed(13, "a") };
    let bare = [build(14, &project(1)), build(15, &project(1))];
    let batch = [
        keyed(11, "a"),
        keyed(12, "b"),
        keyed(16, "b"),
        elsewhere.clone(),
        bare[0].clone(),
        bare[1].clone(),
    ];
    let mut inserted = tx.insert_builds(&batch).await.unwrap();
    inserted.sort();
    assert_eq!(inserted, [batch[1].id, elsewhere.id, bare[0].id, bare[1].id]);
    let keys = [
        (project(1).id, "a".to_owned()),
        (project(1).id, "b".to_owned()),
        (project(1).id, "c".to_owned()),
        (project(2).id, "a".to_owned()),
    ];
    let mut found = tx.builds_by_key(&keys).await.unwrap();
    found.sort_by_key(|row| row.id);
    assert_eq!(found, [keyed(10, "a"), keyed(12, "b"), elsewhere]);
    tx.commit().await.unwrap();
    assert_eq!(store.build(batch[0].id).await.unwrap(), None);
}

async fn insert(store: &SharedStore, rows: &[BuildRow]) {
    let mut tx = store.begin().await.unwrap();
    for n in [1, 2] {
        tx.insert_project(&project(n)).await.unwrap();
    }
    tx.insert_builds(rows).await.unwrap();
    tx.commit().await.unwrap();
}

/// Seven builds of which five were created in the same millisecond, in pages of two.
pub(crate) async fn pages_follow_each_other_in_both_orders(Made { store, .. }: Made) {
    let mut rows: Vec<_> = (10..17).map(|n| build(n, &project(1))).collect();
    for row in &mut rows[1..6] {
        row.created_at = 5_000;
    }
    rows[6].created_at = 1;
    insert(&store, &rows).await;
    rows.sort_by_key(|row| (row.created_at, row.id));
    for oldest_first in [true, false] {
        let filter = BuildFilter { oldest_first, ..BuildFilter::default() };
        let mut after = None;
        let mut seen = vec![];
        loop {
            let page = store.builds(&filter, after, 2).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some((last.created_at, last.id));
            seen.extend(page);
        }
        assert_eq!(seen, rows);
        rows.reverse();
    }
}

pub(crate) async fn filters_narrow_a_list(Made { store, .. }: Made) {
    let mut rows: Vec<_> = (10..16).map(|n| build(n, &project(1 + n % 2))).collect();
    rows[0].title = "Fix 100% of it".into();
    rows[1].title = "fix a_b".into();
    rows[2].title = "axb \\ c".into();
    rows[3].counts.add(Status::Running, false);
    rows[4].counts.add(Status::Failed, false);
    insert(&store, &rows).await;
    let ids = async |filter: BuildFilter| -> Vec<BuildId> {
        let filter = BuildFilter { oldest_first: true, ..filter };
        store.builds(&filter, None, 100).await.unwrap().iter().map(|row| row.id).collect()
    };
    let none = BuildFilter::default;
    let title = |text: &str| BuildFilter { title_contains: text.to_owned(), ..none() };
    assert_eq!(ids(title("FIX")).await, [rows[0].id, rows[1].id]);
    assert_eq!(ids(title("0%")).await, [rows[0].id]);
    assert_eq!(ids(title("a_b")).await, [rows[1].id]);
    assert_eq!(ids(title("\\")).await, [rows[2].id]);
    let of = BuildFilter { project: Some(project(2).id), ..none() };
    assert_eq!(ids(of).await, [rows[1].id, rows[3].id, rows[5].id]);
    let states = BuildFilter { states: vec![BuildState::Running, BuildState::Failed], ..none() };
    assert_eq!(ids(states).await, [rows[3].id, rows[4].id]);
    let span = BuildFilter {
        created_from: Some(rows[2].created_at),
        created_until: Some(rows[4].created_at),
        ..none()
    };
    assert_eq!(ids(span).await, [rows[2].id, rows[3].id]);
}

fn record(build: BuildId, number: i64) -> Record {
    Record { build, number, at: 7, change: Change::Submitted { jobs: 1 } }
}

pub(crate) async fn events_are_numbered_once(Made { store, .. }: Made) {
    let first = seed(&store, |build| vec![new_job(job(100, 0, build))]).await;
    let second = build(11, &project(1));
    let mut tx = store.begin().await.unwrap();
    tx.insert_builds(std::slice::from_ref(&second)).await.unwrap();
    let batch: Vec<_> = (1..=3).map(|number| record(first.id, number)).collect();
    tx.append_events(&batch).await.unwrap();
    tx.append_events(&[record(second.id, 1)]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.events(first.id, 0, 100).await.unwrap(), batch);
    assert_eq!(store.events(first.id, 1, 1).await.unwrap(), batch[1..2]);
    assert_eq!(store.events(second.id, 0, 100).await.unwrap().len(), 1);

    let mut tx = store.begin().await.unwrap();
    let error = tx.append_events(&[record(first.id, 4), record(first.id, 3)]).await.unwrap_err();
    assert!(matches!(error, Error::Conflict), "{error:?}");
    drop(tx);
    assert_eq!(store.events(first.id, 0, 100).await.unwrap().len(), 3);
}

/// More than one statement takes, and not a multiple of a size.
pub(crate) async fn a_thousand_builds_in_one_set(Made { store, .. }: Made) {
    let rows: Vec<_> = (10..1_047).map(|n| build(n, &project(1))).collect();
    insert(&store, &rows).await;
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let mut tx = store.begin().await.unwrap();
    let mut locked = tx.lock_builds(&ids).await.unwrap();
    assert_eq!(locked, rows);
    for row in &mut locked {
        row.last_event = row.created_at;
    }
    tx.save_builds(&locked).await.unwrap();
    assert_eq!(tx.lock_builds(&ids).await.unwrap(), locked);
    tx.commit().await.unwrap();
}

#[expect(
    clippy::cognitive_complexity,
    reason = "one story: not yet, then all of it, and nothing else"
)]
pub(crate) async fn an_old_build_goes_with_all_that_is_its_own_and_a_needed_one_stays(
    Made { store, .. }: Made,
) {
    let old = seed(&store, |build| {
        let needed = new_job(job(100, 0, build));
        let needs = vec![(needed.row.job.id, true)];
        vec![needed, NewJob { needs, ..new_job(job(101, 1, build)) }]
    })
    .await;
    let jobs = store.jobs_of(old.id).await.unwrap();
    let mut given = lease(40, &jobs[0], AgentId::from_uuid(uuid(31)));
    let mut new = BuildRow { key: Some("new".to_owned()), ..build(11, &project(1)) };
    let mut old = BuildRow { last_event: 1, finished_at: Some(5_000), ..old };
    old.counts = Counts { succeeded: 2, ..Counts::default() };
    let mut tx = store.begin().await.unwrap();
    tx.insert_builds(std::slice::from_ref(&new)).await.unwrap();
    tx.insert_jobs(&[new_job(job(102, 0, &new))]).await.unwrap();
    new = BuildRow { finished_at: Some(9_000), ..new };
    new.counts = Counts { failed: 1, ..Counts::default() };
    tx.save_builds(&[old.clone(), new.clone()]).await.unwrap();
    tx.insert_leases(std::slice::from_ref(&given)).await.unwrap();
    tx.append_events(&[record(old.id, 1)]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.leases_of_build(old.id).await.unwrap(), [given.id]);
    assert_eq!(store.ended_builds(9_000, 9).await.unwrap(), [], "its lease is open");

    let mut tx = store.begin().await.unwrap();
    assert!(!tx.delete_build(old.id, 9_000).await.unwrap(), "its lease is open");
    given.phase = LeasePhase::Finished;
    tx.save_leases(&[given.clone()]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.ended_builds(5_000, 9).await.unwrap(), [], "it ended at that moment");
    assert_eq!(store.ended_builds(9_000, 9).await.unwrap(), [old.id]);
    assert_eq!(store.ended_builds(9_001, 9).await.unwrap(), [old.id, new.id]);
    assert_eq!(store.ended_builds(9_001, 1).await.unwrap(), [old.id]);

    let mut tx = store.begin().await.unwrap();
    assert!(!tx.delete_build(new.id, 9_000).await.unwrap(), "it is not old enough");
    assert!(tx.delete_build(old.id, 9_000).await.unwrap());
    assert!(!tx.delete_build(old.id, 9_000).await.unwrap(), "it is gone");
    tx.commit().await.unwrap();
    assert_eq!(store.build(old.id).await.unwrap(), None);
    assert_eq!(store.jobs_of(old.id).await.unwrap(), []);
    assert_eq!(store.needs_of(old.id).await.unwrap(), []);
    assert_eq!(store.spec(jobs[0].job.id).await.unwrap(), None);
    assert_eq!(store.lease(given.id).await.unwrap(), None);
    assert_eq!(store.events(old.id, 0, 9).await.unwrap(), []);
    assert_eq!(store.build(new.id).await.unwrap(), Some(new.clone()));
    assert_eq!(store.jobs_of(new.id).await.unwrap().len(), 1);
}
