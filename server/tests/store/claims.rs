//! What a claim sees, and the questions about the queue.

use kiln_core::{
    Millis,
    id::{AgentId, ClassId, LeaseId},
    job::State,
    schedule::Class,
    session::LeasePhase,
};
use kiln_server::store::{
    BuildRow, Census, Depth, JobRow, LeaseRow, ProjectRow, QueueRow, SharedStore, Wait,
};

use crate::fixture::{Made, build, class, job, lease, new_job, project, seed, uuid};

fn second_class() -> (ClassId, Class) {
    (ClassId::from_uuid(uuid(901)), Class { backend: "docker".to_owned(), ..class().1 })
}

/// A build of each project with jobs that `change` makes of the plain ones.
async fn fill(
    store: &SharedStore,
    projects: &[(ProjectRow, u32)],
    change: impl Fn(usize, u32, &mut JobRow),
) -> Vec<BuildRow> {
    let mut builds = vec![];
    let mut tx = store.begin().await.unwrap();
    tx.ensure_classes(&[class(), second_class()]).await.unwrap();
    for (place, (project, jobs)) in projects.iter().enumerate() {
        tx.insert_project(project).await.unwrap();
        let build = build(1_000 + place as u128, project);
        tx.insert_builds(std::slice::from_ref(&build)).await.unwrap();
        let jobs: Vec<_> = (0..*jobs)
            .map(|index| {
                let n = 1_000_000 * (place as u128 + 1) + u128::from(index);
                let mut row = job(n, index, &build);
                change(place, index, &mut row);
                new_job(row)
            })
            .collect();
        tx.insert_jobs(&jobs).await.unwrap();
        builds.push(build);
    }
    tx.commit().await.unwrap();
    builds
}

/// (project, index) of the candidates.
async fn claim(
    store: &SharedStore,
    classes: &[ClassId],
    each: u32,
    now: Millis,
) -> Vec<(u128, u32)> {
    let mut tx = store.begin().await.unwrap();
    let found = tx.candidates(classes, each, now).await.unwrap();
    let ids: Vec<_> = found.iter().map(|(candidate, _)| candidate.job).collect();
    let rows = tx.jobs(&ids).await.unwrap();
    let row = |id| rows.iter().find(|row| row.job.id == id).unwrap();
    found
        .iter()
        .map(|(candidate, build)| {
            let row = row(candidate.job);
            assert_eq!(*build, row.job.build);
            assert_eq!(candidate.backend, row.backend);
            assert_eq!(candidate.project, row.project);
            (row.project.uuid().as_u128(), row.index)
        })
        .collect()
}

pub(crate) async fn a_crowd_of_one_project_hides_nobody(Made { store, .. }: Made) {
    let projects = [(project(1), 3_000), (project(2), 1)];
    fill(&store, &projects, |place, _, row| {
        // The crowd is older and of higher priority.
        if place == 0 {
            row.priority = 5;
            row.job.queued_at = 1;
        }
    })
    .await;
    let found = claim(&store, &[class().0], 4, 9_000).await;
    assert_eq!(found, [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]);
}

pub(crate) async fn what_may_not_be_leased_is_no_candidate(Made { store, .. }: Made) {
    let paused = ProjectRow { paused: true, ..project(2) };
    let full = ProjectRow { max_running: 3, running: 3, ..project(3) };
    let room = ProjectRow { max_running: 3, running: 2, ..project(4) };
    let projects = [(project(1), 5), (paused, 1), (full, 1), (room, 1)];
    let strange = second_class().0;
    let builds = fill(&store, &projects, |place, index, row| match (place, index) {
        (0, 0) => row.claimable = false,
        (0, 1) => row.job.state = State::Queued { not_before: 9_001 },
        (0, 2) => row.class = strange,
        (0, 3) => {
            let lease = LeaseId::from_uuid(uuid(5));
            row.job.lease = Some(lease);
            row.job.state = State::Running { lease, cancelling: false };
            row.claimable = false;
        }
        _ => {}
    })
    .await;
    assert_eq!(claim(&store, &[class().0], 9, 9_000).await, [(1, 4), (4, 0)]);
    assert_eq!(claim(&store, &[class().0], 9, 9_001).await, [(1, 1), (1, 4), (4, 0)]);
    assert_eq!(claim(&store, &[strange], 9, 9_000).await, [(1, 2)]);
    assert_eq!(claim(&store, &[strange, class().0], 9, 9_000).await, [(1, 2), (1, 4), (4, 0)]);
    assert_eq!(claim(&store, &[], 9, 9_000).await, []);
    let mut tx = store.begin().await.unwrap();
    let waiting: Vec<_> = tx.waiting_classes().await.unwrap().into_iter().collect();
    assert_eq!(waiting, [class(), second_class()]);
    let mut rows = tx.jobs_of(builds[0].id).await.unwrap();
    rows[2].claimable = false;
    tx.save_jobs(&rows[2..3]).await.unwrap();
    tx.commit().await.unwrap();
    let mut waiting = store.waiting_classes().await.unwrap();
    waiting.sort();
    assert_eq!(waiting, [class().0]);
}

/// A wait that lies in the future as a whole was begun by a clock that has gone back since.
pub(crate) async fn a_wait_of_the_future_is_over(Made { store, .. }: Made) {
    fill(&store, &[(project(1), 2)], |_, index, row| {
        row.job.queued_at = 5_000;
        row.job.state = State::Queued { not_before: if index == 0 { 0 } else { 6_000 } };
    })
    .await;
    assert_eq!(claim(&store, &[class().0], 9, 4_999).await, [(1, 0), (1, 1)]);
    assert_eq!(claim(&store, &[class().0], 9, 5_999).await, [(1, 0)]);
    assert_eq!(claim(&store, &[class().0], 9, 6_000).await, [(1, 0), (1, 1)]);
}

pub(crate) async fn candidates_come_by_priority_and_age(Made { store, .. }: Made) {
    let second = second_class().0;
    fill(&store, &[(project(1), 6)], |_, index, row| {
        row.class = if index % 2 == 0 { row.class } else { second };
        (row.priority, row.job.queued_at) = match index {
            0 => (0, 10),
            1 => (0, 5),
            2 => (1, 99),
            3 => (-1, 1),
            _ => (0, 7),
        };
    })
    .await;
    let both = [class().0, second];
    let order = [2, 1, 4, 5, 0, 3].map(|index| (1, index));
    assert_eq!(claim(&store, &both, 9, 9_000).await, order);
    assert_eq!(claim(&store, &both, 3, 9_000).await, order[..3]);
    let row = &store.oldest_queued(9).await.unwrap();
    assert_eq!(row.iter().map(|row| row.index).collect::<Vec<_>>(), [3, 1, 4, 5, 0, 2]);
    let rows = store.jobs_of(row[0].job.build).await.unwrap();
    assert_eq!(store.ahead_of(&rows[0]).await.unwrap(), 2);
    assert_eq!(store.ahead_of(&rows[2]).await.unwrap(), 0);
    assert_eq!(store.ahead_of(&rows[3]).await.unwrap(), 2);
}

/// Twenty projects; the sixteen of least weighted use are looked at.
pub(crate) async fn the_least_used_projects_come_first(Made { store, .. }: Made) {
    let projects: Vec<_> = (1..=20_u32)
        .map(|n| {
            let running = 21 - n;
            // The first has by far the greatest weight.
            let weight = if n == 1 { 1_000 } else { 1 };
            (ProjectRow { running, weight, ..project(n.into()) }, 2)
        })
        .collect();
    fill(&store, &projects, |_, _, _| {}).await;
    let found = claim(&store, &[class().0], 1, 9_000).await;
    let mut expected = vec![(1, 0)];
    expected.extend((6..=20).rev().map(|n| (n, 0)));
    assert_eq!(found, expected);
}

pub(crate) async fn an_affinity_names_the_agent_that_is_warm(Made { store, .. }: Made) {
    fill(&store, &[(project(1), 2)], |_, index, row| row.affinity = format!("warm-{index}")).await;
    let [first, second] = [31, 32].map(|n| AgentId::from_uuid(uuid(n)));
    let mut tx = store.begin().await.unwrap();
    tx.save_affinities(&[("warm-0".to_owned(), first, 1), ("else".to_owned(), first, 1)])
        .await
        .unwrap();
    tx.save_affinities(&[("warm-0".to_owned(), second, 2)]).await.unwrap();
    let found = tx.candidates(&[class().0], 9, 9_000).await.unwrap();
    let preferred: Vec<_> = found.iter().map(|(candidate, _)| candidate.preferred).collect();
    assert_eq!(preferred, [Some(second), None]);
}

pub(crate) async fn the_queue_is_counted(Made { store, .. }: Made) {
    let builds = fill(&store, &[(project(1), 3), (project(2), 1)], |place, index, row| {
        row.job.queued_at = 50 - Millis::from(index);
        if (place, index) == (0, 2) {
            row.job.state = State::Blocked;
            row.claimable = false;
        }
    })
    .await;
    let row = store.jobs_of(builds[1].id).await.unwrap().remove(0);
    let mut tx = store.begin().await.unwrap();
    tx.insert_leases(&[lease(40, &row, AgentId::from_uuid(uuid(31)))]).await.unwrap();
    tx.commit().await.unwrap();
    let count = |n, queued, running, oldest| QueueRow {
        project: project(n).id,
        queued,
        running,
        oldest: Some(oldest),
    };
    assert_eq!(store.queue().await.unwrap(), [count(1, 2, 0, 49), count(2, 1, 1, 50)]);
}

pub(crate) async fn what_waits_and_what_is_open_is_counted(Made { store, .. }: Made) {
    let builds = fill(&store, &[(project(1), 4), (project(2), 1)], |place, index, row| {
        row.job.queued_at = 50 - Millis::from(index);
        row.job.state = match (place, index) {
            (0, 1) => State::Blocked,
            (0, 2) => State::Queued { not_before: 100 },
            _ => State::Queued { not_before: 0 },
        };
        row.claimable = place == 1 || [0, 2].contains(&index);
    })
    .await;
    let row = store.jobs_of(builds[1].id).await.unwrap().remove(0);
    let agent = AgentId::from_uuid(uuid(31));
    let running = LeaseRow { phase: LeasePhase::Running, ..lease(41, &row, agent) };
    let ended = LeaseRow { phase: LeasePhase::Finished, ..lease(42, &row, agent) };
    let mut tx = store.begin().await.unwrap();
    tx.insert_leases(&[lease(40, &row, agent), running, ended]).await.unwrap();
    tx.commit().await.unwrap();
    let depth = |n, wait, oldest| Depth { project: project(n).id, wait, jobs: 1, oldest };
    let slots = [depth(1, Wait::Slot, 50), depth(2, Wait::Slot, 50)];
    let queue = vec![
        slots[0].clone(),
        depth(1, Wait::Backoff, 48),
        depth(1, Wait::Group, 47),
        slots[1].clone(),
    ];
    let census = Census { queue, leased: 1, running: 1, sessions: 0 };
    assert_eq!(store.census(99).await.unwrap(), census);
    let later = store.census(100).await.unwrap();
    assert_eq!(later.queue[0], Depth { jobs: 2, ..depth(1, Wait::Slot, 48) });
}

pub(crate) async fn overdue_jobs_and_the_next_end_of_a_backoff_are_found(Made { store, .. }: Made) {
    let build = seed(&store, |build| {
        (0..4_u32)
            .map(|index| {
                let mut row = job(100 + u128::from(index), index, build);
                row.job.queued_at = 1_000;
                row.job.queue_timeout_ms = [500, 100, 9_000, 300][index as usize];
                match index {
                    0 => row.job.state = State::Queued { not_before: 4_000 },
                    2 => row.job.state = State::Queued { not_before: 3_000 },
                    3 => row.job.state = State::Blocked,
                    _ => {}
                }
                row.claimable = index != 3;
                new_job(row)
            })
            .collect()
    })
    .await;
    let ids: Vec<_> =
        store.jobs_of(build.id).await.unwrap().iter().map(|row| (build.id, row.job.id)).collect();
    assert_eq!(store.overdue(1_099, 9).await.unwrap(), []);
    assert_eq!(store.overdue(1_500, 9).await.unwrap(), [ids[1], ids[0]]);
    assert_eq!(store.overdue(1_500, 1).await.unwrap(), [ids[1]]);
    assert_eq!(store.next_not_before(1_000).await.unwrap(), Some(3_000));
    assert_eq!(store.next_not_before(3_000).await.unwrap(), Some(4_000));
    assert_eq!(store.next_not_before(4_000).await.unwrap(), None);
}
