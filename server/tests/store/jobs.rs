//! Jobs, their needs, classes and groups.

use kiln_core::{
    id::{AgentId, ClassId, JobId, LeaseId},
    job::State,
    outcome::{FailureKind, Outcome, RetryPolicy},
};
use kiln_server::store::{GroupRow, JobRow, NewJob};

use crate::fixture::{Made, class, job, new_job, project, seed, uuid};

fn states() -> Vec<State> {
    let lease = LeaseId::from_uuid(uuid(5));
    let failed = Outcome::Failed {
        kind: FailureKind::Oom,
        exit_code: Some(-9),
        message: "killed: \"ü\"".to_owned(),
    };
    vec![
        State::Blocked,
        State::Queued { not_before: 77 },
        State::Leased { lease, cancelling: false },
        State::Running { lease, cancelling: true },
        State::Done(Outcome::Succeeded),
        State::Done(failed),
        State::Done(Outcome::cancelled("enough")),
    ]
}

pub(crate) async fn jobs_round_trip_in_every_state(Made { store, .. }: Made) {
    let full = |row: JobRow, state: &State| {
        let mut row = JobRow {
            group: Some(uuid(3)),
            priority: -7,
            allow_failure: true,
            open_needs: 2,
            claimable: matches!(state, State::Queued { .. }),
            agent: Some(AgentId::from_uuid(uuid(4))),
            returned: Some("no disk".to_owned()),
            started_at: Some(1),
            finished_at: Some(2),
            ..row
        };
        row.job.state = state.clone();
        row.job.round = 2;
        row.job.attempt = 3;
        row.job.attempts = 4;
        row.job.returns = 5;
        row.job.lease = Some(LeaseId::from_uuid(uuid(5)));
        row.job.answered = Some(LeaseId::from_uuid(uuid(6)));
        row.job.retry =
            RetryPolicy { max_attempts: 9, on: [FailureKind::User].into(), backoff_ms: 3 };
        row
    };
    let rows = |build: &_| {
        let list = (100..).zip(0..).zip(states());
        list.map(|((n, index), state)| full(job(n, index, build), &state)).collect::<Vec<_>>()
    };
    let build = seed(&store, |build| rows(build).into_iter().map(new_job).collect()).await;
    let mut stored = rows(&build);
    assert_eq!(store.jobs_of(build.id).await.unwrap(), stored);
    assert_eq!(store.job(stored[3].job.id).await.unwrap().as_ref(), Some(&stored[3]));

    // Each becomes what the next was.
    let mut tx = store.begin().await.unwrap();
    let mut states = states();
    states.rotate_left(1);
    for (row, state) in stored.iter_mut().zip(states) {
        *row = full(row.clone(), &state);
        row.agent = None;
        row.returned = None;
        row.job.queued_at += 1;
        row.open_needs = 0;
    }
    assert!(tx.save_jobs(&stored).await.unwrap().is_empty());
    tx.commit().await.unwrap();
    for row in &mut stored {
        row.version += 1;
    }
    assert_eq!(store.jobs_of(build.id).await.unwrap(), stored);
    let ids: Vec<_> = stored.iter().map(|row| row.job.id).collect();
    let specs = store.specs(&ids).await.unwrap();
    assert_eq!(specs.len(), stored.len());
    assert_eq!(store.spec(ids[0]).await.unwrap(), Some(new_job(stored[0].clone()).spec));
    assert_eq!(store.spec(JobId::from_uuid(uuid(7))).await.unwrap(), None);
}

pub(crate) async fn a_save_of_another_version_is_a_conflict(Made { store, .. }: Made) {
    let build = seed(&store, |build| {
        (0..5_u32).map(|n| new_job(job(100 + u128::from(n), n, build))).collect()
    })
    .await;
    let stale = store.jobs_of(build.id).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    assert!(tx.save_jobs(&stale[1..3]).await.unwrap().is_empty());
    let mut rows = stale.clone();
    for row in &mut rows {
        row.claimable = false;
    }
    let mut conflicts = tx.save_jobs(&rows).await.unwrap();
    conflicts.sort();
    assert_eq!(conflicts, [stale[1].job.id, stale[2].job.id]);
    tx.commit().await.unwrap();
    let stored = store.jobs_of(build.id).await.unwrap();
    let claimable: Vec<_> = stored.iter().map(|row| row.claimable).collect();
    assert_eq!(claimable, [false, true, true, false, false]);
    assert!(stored.iter().all(|row| row.version == 1));
}

/// 0 ← 1, 0 ← 2, 1 ← 2
pub(crate) async fn needs_are_found_from_both_ends(Made { store, .. }: Made) {
    let build = seed(&store, |build| {
        let mut jobs: Vec<NewJob> =
            (0..3_u32).map(|n| new_job(job(100 + u128::from(n), n, build))).collect();
        let ids: Vec<_> = jobs.iter().map(|new| new.row.job.id).collect();
        jobs[1].needs = vec![(ids[0], true)];
        jobs[2].needs = vec![(ids[1], false), (ids[0], true)];
        jobs
    })
    .await;
    let rows = store.jobs_of(build.id).await.unwrap();
    let id = |n: usize| rows[n].job.id;
    let edges = [(id(1), id(0), true), (id(2), id(0), true), (id(2), id(1), false)];
    assert_eq!(store.needs_of(build.id).await.unwrap(), edges);
    let needed = store.needed_by(&[id(2), id(0)]).await.unwrap();
    assert_eq!(needed, [(id(2), rows[0].clone(), true), (id(2), rows[1].clone(), false)]);
    let mut tx = store.begin().await.unwrap();
    assert_eq!(tx.edges(build.id).await.unwrap(), edges.map(|(job, needed, _)| (job, needed)));
    let mut found = tx.dependents(&[id(0), id(2)]).await.unwrap();
    found.sort_by_key(|(_, row)| row.index);
    assert_eq!(found, [(id(0), rows[1].clone()), (id(0), rows[2].clone())]);
    assert_eq!(tx.jobs(&[id(2), id(0)]).await.unwrap(), [rows[0].clone(), rows[2].clone()]);
    assert_eq!(tx.jobs_of(build.id).await.unwrap(), rows);
}

pub(crate) async fn classes_and_groups_are_made_once(Made { store, .. }: Made) {
    let (id, first) = class();
    let mut second = first.clone();
    second.constraints.labels.insert("disk".to_owned(), "fast".to_owned());
    let other = |n| ClassId::from_uuid(uuid(n));
    let mut tx = store.begin().await.unwrap();
    tx.insert_project(&project(1)).await.unwrap();
    let ids = tx.ensure_classes(&[(id, first.clone()), (other(2), first.clone())]).await.unwrap();
    assert_eq!(ids, [id, id]);
    let classes = [(other(3), second.clone()), (other(4), first.clone())];
    assert_eq!(tx.ensure_classes(&classes).await.unwrap(), [other(3), id]);

    let group = |n, name: &str, limit| GroupRow {
        id: uuid(n),
        project: project(1).id,
        name: name.to_owned(),
        limit,
    };
    let made = tx.ensure_groups(&[group(8, "b", 1), group(7, "a", 2)]).await.unwrap();
    assert_eq!(made, [group(8, "b", 1), group(7, "a", 2)]);
    let again = tx.ensure_groups(&[group(1, "a", 5), group(2, "c", 1)]).await.unwrap();
    assert_eq!(again, [group(7, "a", 5), group(2, "c", 1)]);
    assert_eq!(
        tx.lock_groups(&[uuid(8), uuid(7)]).await.unwrap(),
        [again[0].clone(), made[0].clone()]
    );
    tx.commit().await.unwrap();
    assert_eq!(store.group(uuid(7)).await.unwrap(), Some(group(7, "a", 5)));
    assert_eq!(store.group(uuid(1)).await.unwrap(), None);
    assert_eq!(store.class(other(3)).await.unwrap(), Some(second));
    assert_eq!(store.class(other(4)).await.unwrap(), None);
}

pub(crate) async fn members_of_a_group_come_in_order(Made { store, .. }: Made) {
    let lease = LeaseId::from_uuid(uuid(5));
    let states = [
        State::Queued { not_before: 0 },
        State::Leased { lease, cancelling: false },
        State::Queued { not_before: 0 },
        State::Blocked,
        State::Running { lease, cancelling: false },
        State::Done(Outcome::Succeeded),
        State::Queued { not_before: 0 },
    ];
    let build = seed(&store, |build| {
        let list = (100..).zip(0..).zip(states.clone());
        list.map(|((n, index), state)| {
            let mut row = JobRow { group: Some(uuid(7)), claimable: false, ..job(n, index, build) };
            row.job.lease = Some(lease);
            row.job.state = state;
            new_job(row)
        })
        .chain([new_job(job(200, 50, build))])
        .collect()
    })
    .await;
    let indexes = |rows: Vec<JobRow>| rows.iter().map(|row| row.index).collect::<Vec<_>>();
    assert_eq!(indexes(store.members(uuid(7)).await.unwrap()), [0, 1, 2, 4, 6]);
    let mut tx = store.begin().await.unwrap();
    assert_eq!(indexes(tx.group_members(uuid(7), 1).await.unwrap()), [0, 1, 4]);
    assert_eq!(indexes(tx.group_members(uuid(7), 9).await.unwrap()), [0, 1, 2, 4, 6]);
    assert_eq!(indexes(tx.group_members(uuid(7), 0).await.unwrap()), [1, 4]);
    assert_eq!(tx.jobs_of(build.id).await.unwrap().len(), 8);
}

pub(crate) async fn ten_thousand_jobs_in_one_set(Made { store, .. }: Made) {
    let build = seed(&store, |build| {
        let mut jobs: Vec<NewJob> =
            (0..10_000_u32).map(|n| new_job(job(1_000 + u128::from(n), n, build))).collect();
        let first = jobs[0].row.job.id;
        for new in &mut jobs[1..] {
            new.needs = vec![(first, false)];
        }
        jobs
    })
    .await;
    let mut tx = store.begin().await.unwrap();
    let rows = tx.jobs_of(build.id).await.unwrap();
    assert_eq!(rows.len(), 10_000);
    assert_eq!(tx.dependents(&[rows[0].job.id]).await.unwrap().len(), 9_999);
    assert!(tx.save_jobs(&rows[..1_777]).await.unwrap().is_empty());
    tx.commit().await.unwrap();
}

pub(crate) async fn wrong_counts_and_needs_are_found(Made { store, .. }: Made) {
    let build = seed(&store, |build| {
        let mut jobs = vec![new_job(job(100, 0, build)), new_job(job(101, 1, build))];
        jobs[1].needs = vec![(jobs[0].row.job.id, false)];
        jobs[1].row.job.state = State::Blocked;
        jobs[1].row.claimable = false;
        jobs[1].row.open_needs = 1;
        jobs
    })
    .await;
    assert!(store.inconsistent(10).await.unwrap().is_empty());

    let mut tx = store.begin().await.unwrap();
    let mut rows = tx.jobs_of(build.id).await.unwrap();
    rows[1].open_needs = 0;
    tx.save_jobs(&rows[1..]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.inconsistent(10).await.unwrap(), [build.id]);

    let mut tx = store.begin().await.unwrap();
    let mut rows = tx.jobs_of(build.id).await.unwrap();
    rows[1].open_needs = 1;
    tx.save_jobs(&rows[1..]).await.unwrap();
    let mut wrong = tx.lock_builds(&[build.id]).await.unwrap();
    wrong[0].counts.queued = 2;
    tx.save_builds(&wrong).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.inconsistent(10).await.unwrap(), [build.id]);
    assert!(store.inconsistent(0).await.unwrap().is_empty());
}
