//! Secrets from Set to the frame, and back to nothing.

use std::sync::Arc;

use kiln_core::{outcome::Outcome, secret::Secret, session::Record, spec::JobSpec};

use super::{Database, World, failed, job, report, submission};
use crate::{
    app::{Error, Submit},
    files::NoFiles,
    secrets::{Keys, new_key_text},
    store::ProjectRow,
};

scenarios!(
    a_job_gets_what_it_asks_for_and_keeps_it,
    what_is_missing_is_refused_at_submit,
    values_that_are_too_large_together_are_refused,
    a_secret_that_is_deleted_while_its_job_waits_fails_the_job,
    a_builds_own_secret_comes_first_and_goes_with_it,
    a_retry_that_lacks_its_secret_changes_nothing,
    keys_rotate,
);

fn keys(texts: &[&str]) -> Keys {
    Keys::parse(&texts.join("\n")).unwrap()
}

async fn unlock(world: &World) -> String {
    let text = new_key_text().unwrap();
    assert!(world.app.use_keys(Some(keys(&[&text]))).await.unwrap().is_empty());
    text.to_string()
}

fn asking(names: &[&str]) -> JobSpec {
    let secrets = names.iter().map(|&name| name.to_owned()).collect();
    JobSpec { secrets, ..job("a", &[]) }
}

fn secret(name: &str, value: &str) -> Secret {
    Secret { name: name.into(), value: value.into() }
}

async fn set(world: &World, name: &str, value: &str) -> ProjectRow {
    let project = world.app.project_or_default("default").await.unwrap();
    world.app.set_secret(&project, name, value.as_bytes(), "someone").await.unwrap();
    project
}

fn fields(error: Error) -> Vec<String> {
    match error {
        Error::Invalid(found) => found.into_iter().map(|wrong| wrong.field).collect(),
        other => panic!("{other:?}"),
    }
}

fn code(error: &Error) -> &'static str {
    match error {
        Error::Precondition { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

async fn a_job_gets_what_it_asks_for_and_keeps_it(world: World) {
    unlock(&world).await;
    let project = set(&world, "TOKEN", "first").await;
    set(&world, "OTHER", "not asked for").await;
    world.submit(vec![asking(&["TOKEN"])]).await;
    let session = world.connect("box", 1).await;
    let lease = world.claim(session).await.remove(0).lease;
    let given = world.app.given(lease).await.unwrap();
    assert_eq!(given.secrets, [secret("TOKEN", "first")]);

    // Whatever becomes of the secret, this lease has the value that its log is masked with.
    set(&world, "TOKEN", "second").await;
    assert_eq!(world.app.given(lease).await.unwrap().secrets, [secret("TOKEN", "first")]);
    world.app.delete_secret(&project, "TOKEN").await.unwrap();
    world.app.sweep_secrets(&NoFiles).await.unwrap();
    let again = world.app.granted(&[lease]).await.unwrap();
    assert_eq!(again[&lease], [secret("TOKEN", "first")]);

    world.start(session, lease).await;
    world.finish(session, lease, Outcome::Succeeded).await;
    world.app.sweep_secrets(&NoFiles).await.unwrap();
    assert!(world.app.granted(&[lease]).await.unwrap().is_empty());
    let left: Vec<_> = world.app.secrets(project.id).await.unwrap();
    assert_eq!(left.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["OTHER"]);
    world.check().await;
    world.stop().await;
}

async fn what_is_missing_is_refused_at_submit(world: World) {
    let project = world.app.project_or_default("default").await.unwrap();
    let error = world.app.set_secret(&project, "A", b"x", "someone").await.unwrap_err();
    assert_eq!(code(&error), "NO_SECRETS_KEY");
    unlock(&world).await;
    set(&world, "THERE", "x").await;
    let submit = submission("default", None, vec![asking(&["THERE", "GONE"])]);
    let error = world.app.check(submit.clone()).await.unwrap_err();
    assert!(error.to_string().contains("kiln secret set GONE --project default"), "{error}");
    assert_eq!(
        fields(world.app.submit(submit.clone()).await.unwrap_err()),
        ["spec.jobs[0].secrets[1]"]
    );
    assert_eq!(fields(error), ["spec.jobs[0].secrets[1]"]);
    let given = Submit {
        secrets: vec![secret("unfit", " "), secret("GONE", "x"), secret("GONE", "y")],
        ..submit
    };
    let wanted = ["secrets[0].name", "secrets[0].value", "secrets[0].name", "secrets[2].name"];
    assert_eq!(fields(world.app.submit(given).await.unwrap_err()), wanted);
    world.stop().await;
}

async fn values_that_are_too_large_together_are_refused(world: World) {
    unlock(&world).await;
    let large = "x".repeat(50 << 10);
    for name in ["L1", "L2", "L3"] {
        set(&world, name, &large).await;
    }
    let submit = submission("default", None, vec![asking(&["L1", "L2", "L3"])]);
    assert_eq!(fields(world.app.submit(submit).await.unwrap_err()), ["spec.jobs[0].secrets"]);
    world.stop().await;
}

async fn a_secret_that_is_deleted_while_its_job_waits_fails_the_job(world: World) {
    unlock(&world).await;
    let project = set(&world, "THERE", "x").await;
    let build = world.submit(vec![asking(&["THERE"])]).await.build.id;
    world.app.delete_secret(&project, "THERE").await.unwrap();
    let session = world.connect("box", 1).await;
    let lease = world.claim(session).await.remove(0).lease;
    assert!(matches!(world.app.given(lease).await, Err(Error::NotFound { .. })));
    assert_eq!(world.statuses(build).await, "a:failed");
    let explained = world.app.explain(world.job(build, "a").await.job.id).await.unwrap();
    assert!(explained.summary.contains("THERE"), "{explained:?}");
    world.check().await;
    world.stop().await;
}

async fn a_builds_own_secret_comes_first_and_goes_with_it(world: World) {
    unlock(&world).await;
    let project = set(&world, "TOKEN", "of the project").await;
    let submit = Submit {
        secrets: vec![secret("TOKEN", "of the build")],
        ..submission("default", Some("key"), vec![asking(&["TOKEN"])])
    };
    let (build, created) = world.app.submit(submit.clone()).await.unwrap();
    assert!(created && !world.app.submit(submit).await.unwrap().1, "the key names it");
    let session = world.connect("box", 1).await;
    let lease = world.claim(session).await.remove(0).lease;
    let given = world.app.given(lease).await.unwrap();
    assert_eq!(given.secrets, [secret("TOKEN", "of the build")]);
    world.app.sweep_secrets(&NoFiles).await.unwrap();
    assert_eq!(world.app.given(lease).await.unwrap().secrets, given.secrets, "it is not done");
    world.start(session, lease).await;
    world.finish(session, lease, Outcome::Succeeded).await;
    assert_eq!(world.store.done_builds_with_secrets(9).await.unwrap(), [build.build.id]);
    world.app.sweep_secrets(&NoFiles).await.unwrap();
    assert_eq!(world.store.done_builds_with_secrets(9).await.unwrap(), []);
    let mut tx = world.store.begin().await.unwrap();
    let names = ["TOKEN".to_owned()];
    let left = tx.lock_secrets(project.id, Some(build.build.id), &names).await.unwrap();
    assert!(left.iter().all(|row| row.build.is_none()) && left.len() == 1);
    drop(tx);
    world.stop().await;
}

async fn a_retry_that_lacks_its_secret_changes_nothing(world: World) {
    unlock(&world).await;
    let given = Submit {
        secrets: vec![secret("ONCE", "x")],
        ..submission("default", None, vec![asking(&["ONCE"])])
    };
    let build = world.app.submit(given).await.unwrap().0.build.id;
    let session = world.connect("box", 1).await;
    let lease = world.claim(session).await.remove(0).lease;
    world.app.given(lease).await.unwrap();
    world.start(session, lease).await;
    let end = Record::Finish(lease, report(failed()));
    world.app.record(session, end).await.unwrap();
    world.app.sweep_secrets(&NoFiles).await.unwrap();
    let error = world.app.retry(build, vec![]).await.unwrap_err();
    assert_eq!(code(&error), "SECRET_GONE");
    assert_eq!(world.statuses(build).await, "a:failed");
    // Set in the project it can be had again.
    set(&world, "ONCE", "y").await;
    world.app.retry(build, vec![]).await.unwrap();
    let lease = world.claim(session).await.remove(0).lease;
    assert_eq!(world.app.given(lease).await.unwrap().secrets, [secret("ONCE", "y")]);
    world.check().await;
    world.stop().await;
}

async fn keys_rotate(world: World) {
    let old = unlock(&world).await;
    set(&world, "A", "x").await;
    let new = new_key_text().unwrap();
    let restarted = || World::beside(Arc::clone(&world.store), Arc::clone(&world.clock));

    let without = restarted();
    let unknown = without.app.use_keys(Some(keys(&[&new]))).await.unwrap();
    assert_eq!(unknown, [keys(&[&old]).first()], "the key of a stored value is missing");
    assert_eq!(without.app.use_keys(None).await.unwrap(), unknown);
    assert_eq!(code(&without.app.reencrypt_secrets().await.unwrap_err()), "NO_SECRETS_KEY");

    let both = restarted();
    assert!(both.app.use_keys(Some(keys(&[&new, &old]))).await.unwrap().is_empty());
    let first = keys(&[&new]).first().to_owned();
    assert_eq!(both.app.reencrypt_secrets().await.unwrap(), (1, first.clone()));
    assert_eq!(both.app.reencrypt_secrets().await.unwrap(), (0, first));

    let rotated = restarted();
    assert!(rotated.app.use_keys(Some(keys(&[&new]))).await.unwrap().is_empty());
    rotated.submit(vec![asking(&["A"])]).await;
    let session = rotated.connect("box", 1).await;
    let lease = rotated.claim(session).await.remove(0).lease;
    assert_eq!(rotated.app.given(lease).await.unwrap().secrets, [secret("A", "x")]);
    for world in [without, both, rotated, world] {
        world.stop().await;
    }
}
