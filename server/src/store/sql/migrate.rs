//! Brings the schema up to this version.

use std::collections::BTreeSet;

use kiln_migrations::Migrator;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend};
use sea_orm_migration::{MigratorTrait, SchemaManager};

use super::{
    super::{Error, Result},
    Sql,
    error::failed,
    query::{all, get},
};

/// Replicas that start at once migrate one after the other: the key of an advisory lock on Postgres.
const MIGRATION_LOCK: i64 = 0x6b69_6c6e;

impl Sql {
    /// Brings the schema up to this version, in one transaction. One of a newer server is left as it is: migrations
    /// only add, so that the servers of both versions work on it while one after the other is replaced.
    pub async fn migrate(&self) -> Result<()> {
        let tx = self.open().await?;
        // Others may be at it, and a large table takes its time.
        let patient = tx.unbounded();
        if patient.get_database_backend() == DbBackend::Postgres {
            let lock = format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
            patient.execute_unprepared(&lock).await.map_err(failed("lock the migrations"))?;
        }
        if !is_newer(patient).await? {
            Migrator::up(patient, None).await.map_err(failed("migrate the database"))?;
        }
        tx.finish().await
    }
}

/// Name of the newest migration that was applied.
pub(super) async fn newest(conn: &impl ConnectionTrait) -> Result<String> {
    let text = "SELECT MAX(version) AS version FROM seaql_migrations";
    let rows = all(conn, "read the newest migration", text, vec![]).await?;
    let newest = rows.first().map(|row| get::<Option<String>>(row, "version")).transpose()?;
    Ok(newest.flatten().unwrap_or_default())
}

/// The schema has all of our migrations, and some that this server does not know.
async fn is_newer(conn: &DatabaseTransaction) -> Result<bool> {
    let table = "seaql_migrations";
    let there = SchemaManager::new(conn).has_table(table).await;
    if !there.map_err(failed("look for the migrations"))? {
        return Ok(false);
    }
    let text = format!("SELECT version FROM {table}");
    let rows = all(conn, "read the migrations", &text, vec![]).await?;
    let applied: BTreeSet<String> =
        rows.iter().map(|row| get(row, "version")).collect::<Result<_>>()?;
    let ours: BTreeSet<String> =
        Migrator::migrations().iter().map(|migration| migration.name().to_owned()).collect();
    let Some(newest) = applied.difference(&ours).last() else { return Ok(false) };
    if let Some(missing) = ours.difference(&applied).next() {
        let why = format!(
            "it has {newest}, which this version does not know, and lacks {missing}; start the version that made it"
        );
        return Err(Error::Database { action: "migrate the database", source: why.into() });
    }
    tracing::warn!(newest, "the database is of a newer version; upgrade this server too");
    Ok(true)
}
