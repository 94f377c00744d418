//! What a transaction promises.

use std::sync::Arc;

use kiln_server::store::{Error, SharedStore, sql};
use sea_orm::{ConnectionTrait, Statement};
use uuid::Uuid;

use crate::fixture::{Made, administer, build, job, new_job, project, seed};

pub(crate) async fn a_dropped_transaction_changes_nothing(Made { store, .. }: Made) {
    let build = seed(&store, |build| vec![new_job(job(100, 0, build))]).await;
    {
        let mut tx = store.begin().await.unwrap();
        let mut rows = tx.jobs_of(build.id).await.unwrap();
        rows[0].claimable = false;
        assert!(tx.save_jobs(&rows).await.unwrap().is_empty());
        tx.insert_project(&project(2)).await.unwrap();
    }
    assert!(store.jobs_of(build.id).await.unwrap()[0].claimable);
    assert_eq!(store.projects().await.unwrap().len(), 1);
    let mut tx = store.begin().await.unwrap();
    tx.insert_project(&project(2)).await.unwrap();
    tx.commit().await.unwrap();
}

pub(crate) async fn readers_see_what_is_committed_only(Made { store, .. }: Made) {
    let mut tx = store.begin().await.unwrap();
    tx.insert_project(&project(1)).await.unwrap();
    assert_eq!(store.project("project-1").await.unwrap(), None);
    tx.commit().await.unwrap();
    assert_eq!(store.project("project-1").await.unwrap(), Some(project(1)));
}

/// Each reads first and writes then, which is what a deferred transaction of SQLite can't do. Half of them belong to
/// another server on the same database, whose writers don't stand in our queue.
pub(crate) async fn eight_writers_never_find_the_database_locked(Made { store, sql, url }: Made) {
    const ROUNDS: u32 = 40;
    let second: SharedStore = match sql {
        Some(_) => Arc::new(sql::connect(&url, &sql::Options::default()).await.unwrap()),
        None => Arc::clone(&store),
    };
    let mut tx = store.begin().await.unwrap();
    tx.insert_project(&project(1)).await.unwrap();
    tx.commit().await.unwrap();
    let write = |store: SharedStore| async move {
        for _ in 0..ROUNDS {
            let mut tx = store.begin().await?;
            let mut rows = tx.lock_projects(&[project(1).id]).await?;
            rows[0].running += 1;
            tx.save_projects(&rows).await?;
            tx.commit().await?;
        }
        Ok::<(), Error>(())
    };
    let stores = [&store, &second].into_iter().cycle().take(8);
    let writers: Vec<_> = stores.map(|store| write(Arc::clone(store))).collect();
    for result in futures::future::join_all(writers).await {
        result.unwrap();
    }
    assert_eq!(store.project("project-1").await.unwrap().unwrap().running, 8 * ROUNDS);
}

/// Two read the same build under its lock and add to it: nothing is lost.
pub(crate) async fn a_locked_build_is_changed_by_one_at_a_time(Made { store, .. }: Made) {
    let build = seed(&store, |build| vec![new_job(job(100, 0, build))]).await;
    let id = build.id;
    let raise = |store: SharedStore| async move {
        for _ in 0..20 {
            let mut tx = store.begin().await.unwrap();
            let mut rows = tx.lock_builds(&[id, id]).await.unwrap();
            assert_eq!(rows.len(), 1);
            tokio::task::yield_now().await;
            rows[0].last_event += 1;
            tx.save_builds(&rows).await.unwrap();
            tx.commit().await.unwrap();
        }
    };
    futures::join!(raise(Arc::clone(&store)), raise(Arc::clone(&store)));
    assert_eq!(store.build(id).await.unwrap().unwrap().last_event, 40);
}

/// Replicas that start together migrate one after the other, and agree on who they are.
pub(crate) async fn migrations_may_run_at_once(Made { sql, url, store }: Made) {
    let Some(first) = sql else { return };
    let fresh = if url.starts_with("sqlite") {
        format!("{url}-2")
    } else {
        administer(&url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
        url
    };
    let start = async || {
        let sql = sql::connect(&fresh, &sql::Options::default()).await.unwrap();
        sql.migrate().await.unwrap();
        sql
    };
    let (second, third, fourth) = futures::join!(start(), start(), start());
    fourth.close().await;
    let one = second.identity(Uuid::from_u128(1)).await.unwrap();
    assert_eq!(third.identity(Uuid::from_u128(2)).await.unwrap(), one);
    second.close().await;
    third.close().await;
    first.migrate().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.insert_project(&project(1)).await.unwrap();
    tx.insert_builds(&[build(10, &project(1))]).await.unwrap();
    tx.commit().await.unwrap();
}

/// While servers are replaced one by one, those of the older version start on the schema of the newer.
pub(crate) async fn a_newer_schema_is_left_as_it_is(Made { sql, url, store }: Made) {
    let Some(sql) = sql else { return };
    let other = sea_orm::Database::connect(&url).await.unwrap();
    let versions = "SELECT version FROM seaql_migrations ORDER BY version DESC LIMIT 1";
    let newest =
        other.query_one_raw(Statement::from_string(other.get_database_backend(), versions));
    let newest: String = newest.await.unwrap().unwrap().try_get("", "version").unwrap();
    let add =
        "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m99991231_000001_later', 1)";
    other.execute_unprepared(add).await.unwrap();
    sql.migrate().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.insert_project(&project(1)).await.unwrap();
    tx.commit().await.unwrap();
    // One that has neither all of ours is of another branch: nothing can be said of it.
    let remove = format!("DELETE FROM seaql_migrations WHERE version = '{newest}'");
    other.execute_unprepared(&remove).await.unwrap();
    let error = sql.migrate().await.unwrap_err();
    let said = std::error::Error::source(&error).unwrap().to_string();
    assert!(said.contains("m99991231_000001_later") && said.contains(&newest), "{said}");
    other.close().await.unwrap();
}

#[tokio::test]
async fn a_postgres_that_is_not_there_is_named_without_the_password() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("postgres://kiln:never-shown@127.0.0.1:{port}/builds");
    let error = sql::connect(&url, &sql::Options::default()).await.unwrap_err();
    let said = std::error::Error::source(&error).unwrap().to_string();
    for word in [&format!("127.0.0.1:{port}"), "\"builds\"", "check that it runs"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!format!("{error:?}").contains("never-shown"));
}
