//! Leases and artifacts.

use kiln_core::{
    id::{AgentId, SessionId},
    outcome::Outcome,
    session::{Artifact, LeasePhase},
};
use kiln_server::store::{ArtifactRow, LeaseRow};

use crate::fixture::{Made, job, lease, new_job, seed, uuid};

pub(crate) async fn leases_round_trip_and_open_ones_are_found(Made { store, .. }: Made) {
    let build = seed(&store, |build| vec![new_job(job(100, 0, build))]).await;
    let row = store.jobs_of(build.id).await.unwrap().remove(0);
    let [mine, other] = [31, 32].map(|n| AgentId::from_uuid(uuid(n)));
    let mut rows = vec![lease(40, &row, mine), lease(41, &row, mine), lease(42, &row, other)];
    let mut tx = store.begin().await.unwrap();
    tx.insert_leases(&rows).await.unwrap();
    assert_eq!(
        tx.leases(&[rows[2].id, rows[0].id]).await.unwrap(),
        [rows[0].clone(), rows[2].clone()]
    );
    assert_eq!(tx.open_leases(&[mine]).await.unwrap(), rows[..2]);
    let held = |count| [("shell".to_owned(), count)].into();
    let none = AgentId::from_uuid(uuid(33));
    assert_eq!(
        tx.busy(&[other, none, mine]).await.unwrap(),
        [(mine, held(2)), (other, held(1))].into()
    );
    rows[0] = LeaseRow {
        session: SessionId::from_uuid(uuid(2)),
        phase: LeasePhase::Finished,
        cancelling: true,
        started_at: Some(3),
        ended_at: Some(4),
        outcome: Some(Outcome::Succeeded),
        log_lengths: [("main".to_owned(), u64::MAX)].into(),
        ..rows[0].clone()
    };
    rows[1].phase = LeasePhase::Running;
    tx.save_leases(&rows).await.unwrap();
    assert_eq!(tx.busy(&[mine]).await.unwrap(), [(mine, held(1))].into());
    tx.commit().await.unwrap();
    assert_eq!(store.leases_of_job(row.job.id).await.unwrap(), rows);
    assert_eq!(store.lease(rows[0].id).await.unwrap(), Some(rows[0].clone()));
    assert_eq!(store.open_leases(Some(&[mine])).await.unwrap(), rows[1..2]);
    assert_eq!(store.open_leases(None).await.unwrap(), rows[1..]);
}

pub(crate) async fn artifacts_are_replaced_as_a_whole(Made { store, .. }: Made) {
    let build =
        seed(&store, |build| vec![new_job(job(100, 0, build)), new_job(job(101, 1, build))]).await;
    let rows = store.jobs_of(build.id).await.unwrap();
    let artifact = |index: usize, name: &str| ArtifactRow {
        job: rows[index].job.id,
        build: build.id,
        lease: lease(40, &rows[index], AgentId::from_uuid(uuid(31))).id,
        artifact: Artifact {
            name: name.to_owned(),
            size: 1 << 40,
            sha256: "0".repeat(64),
            mode: 0o755,
        },
    };
    let both = [rows[0].job.id, rows[1].job.id];
    let mut tx = store.begin().await.unwrap();
    let first = [artifact(0, "b"), artifact(0, "a"), artifact(1, "a")];
    tx.put_artifacts(&both, &first).await.unwrap();
    tx.commit().await.unwrap();
    let sorted = [artifact(0, "a"), artifact(0, "b"), artifact(1, "a")];
    assert_eq!(store.artifacts_of(&both).await.unwrap(), sorted);

    let mut tx = store.begin().await.unwrap();
    tx.put_artifacts(&both[..1], &[artifact(0, "c")]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.artifacts_of(&both).await.unwrap(), [artifact(0, "c"), artifact(1, "a")]);
    assert_eq!(store.artifacts_of(&both[1..]).await.unwrap(), [artifact(1, "a")]);
}
