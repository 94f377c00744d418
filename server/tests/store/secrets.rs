//! Secrets, and which value each lease was given.

use kiln_core::{
    id::{AgentId, BuildId, LeaseId, SecretId},
    session::LeasePhase,
};
use kiln_server::store::{Error, GrantRow, JobRow, LeaseRow, SecretRow, SharedStore};

use crate::fixture::{Made, job, lease, new_job, project, seed, uuid};

fn secret(n: u128, name: &str, build: Option<BuildId>) -> SecretRow {
    SecretRow {
        id: SecretId::from_uuid(uuid(n)),
        project: project(1).id,
        build,
        name: name.to_owned(),
        size: 4,
        key: format!("key-{}", n % 2),
        sealed: vec![0, 255, u8::try_from(n % 256).unwrap()],
        set_at: 5,
        set_by: "someone".to_owned(),
        ended_at: None,
    }
}

async fn insert(store: &SharedStore, rows: &[SecretRow]) {
    let mut tx = store.begin().await.unwrap();
    tx.insert_secrets(rows).await.unwrap();
    tx.commit().await.unwrap();
}

/// A build of project 1 with one job.
async fn world(store: &SharedStore) -> (BuildId, JobRow) {
    let build = seed(store, |build| vec![new_job(job(100, 0, build))]).await;
    assert_eq!(build.project, project(1).id);
    (build.id, store.jobs_of(build.id).await.unwrap().remove(0))
}

pub(crate) async fn secrets_round_trip_in_their_scope(Made { store, .. }: Made) {
    let (build, _) = world(&store).await;
    let rows = [secret(61, "B", None), secret(62, "A", None), secret(63, "A", Some(build))];
    insert(&store, &rows).await;
    let head = |row: &SecretRow| SecretRow { sealed: vec![], ..row.clone() };
    let listed = store.secrets(project(1).id).await.unwrap();
    assert_eq!(listed, [head(&rows[1]), head(&rows[0])], "by name, without values");
    assert_eq!(store.secrets(project(2).id).await.unwrap(), []);
    let mut keys = store.secret_keys().await.unwrap();
    keys.sort();
    assert_eq!(keys, ["key-0", "key-1"]);
}

pub(crate) async fn a_current_secret_has_its_name_alone(Made { store, .. }: Made) {
    let (build, _) = world(&store).await;
    let rows = [secret(61, "B", None), secret(62, "A", None), secret(63, "A", Some(build))];
    insert(&store, &rows).await;
    let head = |row: &SecretRow| SecretRow { sealed: vec![], ..row.clone() };
    let mut tx = store.begin().await.unwrap();
    let names = ["A".to_owned(), "C".to_owned()];
    let found = tx.lock_secrets(project(1).id, Some(build), &names).await.unwrap();
    assert_eq!(found, rows[1..]);
    let found = tx.lock_secrets(project(1).id, None, &names).await.unwrap();
    assert_eq!(found, rows[1..2]);
    assert_eq!(tx.count_secrets(project(1).id).await.unwrap(), 2);
    let taken = tx.insert_secrets(&[secret(64, "A", None)]).await.unwrap_err();
    assert!(matches!(&taken, Error::Exists { what: "secret", name } if name == "A"), "{taken:?}");
    drop(tx);

    let mut tx = store.begin().await.unwrap();
    tx.end_secrets(&[rows[1].id], 9).await.unwrap();
    tx.insert_secrets(&[secret(64, "A", None)]).await.unwrap();
    assert_eq!(tx.delete_ended_secrets().await.unwrap(), 1);
    tx.commit().await.unwrap();
    let listed = store.secrets(project(1).id).await.unwrap();
    assert_eq!(listed, [head(&secret(64, "A", None)), head(&rows[0])]);
}

pub(crate) async fn values_are_encrypted_anew_one_key_at_a_time(Made { store, .. }: Made) {
    world(&store).await;
    insert(&store, &[secret(61, "A", None), secret(62, "B", None)]).await;
    let mut old = store.secrets_of_other_keys("key-0", 10).await.unwrap();
    assert_eq!(old, [secret(61, "A", None)]);
    (old[0].key, old[0].sealed) = ("key-0".to_owned(), vec![7]);
    // What it was read with otherwise is not saved.
    old[0].ended_at = Some(1);
    let mut tx = store.begin().await.unwrap();
    tx.save_sealed(&old).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.secrets_of_other_keys("key-0", 10).await.unwrap(), []);
    assert_eq!(store.secrets_of_other_keys("key-1", 1).await.unwrap().len(), 1);
    assert_eq!(store.secrets(project(1).id).await.unwrap().len(), 2);
}

fn grant(lease: LeaseId, n: u128) -> GrantRow {
    GrantRow { lease, name: "A".to_owned(), secret: SecretId::from_uuid(uuid(n)) }
}

/// Two leases: the first was given the value that was replaced since, the second the current one.
async fn two_leases(store: &SharedStore) -> Vec<LeaseRow> {
    let (_, row) = world(store).await;
    insert(store, &[secret(61, "A", None)]).await;
    let agent = AgentId::from_uuid(uuid(31));
    let leases = vec![lease(40, &row, agent), lease(41, &row, agent)];
    let mut tx = store.begin().await.unwrap();
    tx.insert_leases(&leases).await.unwrap();
    tx.insert_grants(&[grant(leases[0].id, 61)]).await.unwrap();
    tx.end_secrets(&[SecretId::from_uuid(uuid(61))], 9).await.unwrap();
    assert_eq!(tx.delete_ended_secrets().await.unwrap(), 0, "a lease has it");
    tx.insert_secrets(&[secret(62, "A", None)]).await.unwrap();
    tx.insert_grants(&[grant(leases[0].id, 62), grant(leases[1].id, 62)]).await.unwrap();
    tx.commit().await.unwrap();
    leases
}

pub(crate) async fn a_lease_keeps_the_value_that_it_was_given(Made { store, .. }: Made) {
    let leases = two_leases(&store).await;
    let ids = [leases[1].id, leases[0].id];
    let old = SecretRow { ended_at: Some(9), ..secret(61, "A", None) };
    let wanted = [(leases[0].id, old), (leases[1].id, secret(62, "A", None))];
    assert_eq!(store.granted(&ids).await.unwrap(), wanted);
    let mut tx = store.begin().await.unwrap();
    assert_eq!(tx.granted(&ids[..1]).await.unwrap(), wanted[1..]);
    drop(tx);
    assert_eq!(store.ended_leases_with_secrets(None, 10).await.unwrap(), []);
}

pub(crate) async fn a_value_goes_with_the_last_lease_that_has_it(Made { store, .. }: Made) {
    let mut leases = two_leases(&store).await;
    leases[0].phase = LeasePhase::Finished;
    let ended = [leases[0].id];
    let mut tx = store.begin().await.unwrap();
    tx.save_leases(&leases).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.ended_leases_with_secrets(None, 10).await.unwrap(), ended);
    assert_eq!(store.ended_leases_with_secrets(Some(ended[0]), 10).await.unwrap(), []);
    let mut tx = store.begin().await.unwrap();
    tx.delete_grants(&ended).await.unwrap();
    assert_eq!(tx.delete_ended_secrets().await.unwrap(), 1);
    tx.commit().await.unwrap();
    let left = store.granted(&[leases[0].id, leases[1].id]).await.unwrap();
    assert_eq!(left, [(leases[1].id, secret(62, "A", None))]);
}

pub(crate) async fn secrets_of_done_builds_are_found_and_ended(Made { store, .. }: Made) {
    let (build, _) = world(&store).await;
    insert(&store, &[secret(61, "A", None), secret(62, "A", Some(build))]).await;
    assert_eq!(store.done_builds_with_secrets(10).await.unwrap(), []);
    let mut tx = store.begin().await.unwrap();
    let mut row = tx.lock_builds(&[build]).await.unwrap().remove(0);
    row.finished_at = Some(7);
    tx.save_builds(&[row]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.done_builds_with_secrets(10).await.unwrap(), [build]);
    let mut tx = store.begin().await.unwrap();
    tx.end_secrets_of_builds(&[build], 9).await.unwrap();
    assert_eq!(tx.delete_ended_secrets().await.unwrap(), 1);
    tx.commit().await.unwrap();
    assert_eq!(store.done_builds_with_secrets(10).await.unwrap(), []);
    assert_eq!(store.secrets(project(1).id).await.unwrap().len(), 1);
}
