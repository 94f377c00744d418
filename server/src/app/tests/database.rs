//! A Postgres database for one scenario.

use std::sync::Arc;

use uuid::Uuid;

use crate::store::{
    SharedStore,
    sql::{Options, Sql, connect},
};

pub(super) struct Database {
    admin: String,
    name: String,
    sql: Sql,
}

impl Database {
    /// Nothing where no Postgres is at hand.
    pub(super) async fn create() -> Option<Self> {
        let Ok(admin) = std::env::var("KILN_TEST_POSTGRES") else {
            let required = std::env::var("KILN_TEST_REQUIRE").is_ok_and(|value| value == "1");
            assert!(!required, "KILN_TEST_POSTGRES is not set, but KILN_TEST_REQUIRE=1");
            println!("skipped: KILN_TEST_POSTGRES is not set");
            return None;
        };
        let name = format!("kiln_test_{}", Uuid::now_v7().simple());
        administer(&admin, &format!("CREATE DATABASE \"{name}\"")).await;
        let options = Options { connections: 4, ..Options::default() };
        let sql = connect(&with_database(&admin, &name), &options).await.unwrap();
        sql.migrate().await.unwrap();
        Some(Self { admin, name, sql })
    }

    pub(super) fn store(&self) -> SharedStore {
        Arc::new(self.sql.clone())
    }

    pub(super) async fn drop(self) {
        self.sql.close().await;
        administer(&self.admin, &format!("DROP DATABASE \"{}\" WITH (FORCE)", self.name)).await;
    }
}

/// The URL with another database in its path.
fn with_database(url: &str, name: &str) -> String {
    let (before, query) = url.split_once('?').unwrap_or((url, ""));
    let (scheme, rest) = before.split_once("://").unwrap();
    let host = rest.split('/').next().unwrap();
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    format!("{scheme}://{host}/{name}{query}")
}

async fn administer(url: &str, statement: &str) {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    let (done, ()) = tokio::join!(
        async move {
            let done = client.batch_execute(statement).await;
            drop(client);
            done
        },
        async {
            // It ends when its client is dropped.
            let _ = connection.await;
        }
    );
    done.unwrap();
}
