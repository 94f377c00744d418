//! The store on SQLite and Postgres, one text of statements for both.
//!
//! One table a file: its entity, its rows to and from core types, the statements on it. `tx` opens every transaction,
//! `set` writes many rows in one statement, `queue` asks what waits. Nothing here decides anything.

mod affinity;
mod agent;
mod artifact;
mod blobs;
mod build;
mod class;
mod connect;
mod error;
mod event;
mod group;
mod job;
mod job_spec;
mod lease;
mod logs;
mod meta;
mod need;
mod project;
mod query;
mod queue;
mod read;
mod session;
mod set;
mod sweep;
mod token;
mod tx;
mod write;

use std::sync::Arc;

use kiln_migrations::Migrator;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend};
use sea_orm_migration::MigratorTrait;
use uuid::Uuid;

use super::Result;
use error::failed;

pub use connect::{Options, connect};

/// Replicas that start at once migrate one after the other: the key of an advisory lock on Postgres.
const MIGRATION_LOCK: i64 = 0x6b69_6c6e;

/// A database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sql {
    reader: DatabaseConnection,
    writer: DatabaseConnection,
    /// SQLite has one writer; the rest of them wait here.
    queue: Option<Arc<tx::Queue>>,
}

impl Sql {
    /// Brings the schema up to this version.
    pub async fn migrate(&self) -> Result<()> {
        let tx = self.open().await?;
        if tx.get_database_backend() == DbBackend::Postgres {
            let lock = format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
            tx.execute_unprepared(&lock).await.map_err(failed("lock the migrations"))?;
        }
        Migrator::up(&*tx, None).await.map_err(failed("migrate the database"))?;
        tx.finish().await
    }

    /// What tells this database from another: the same at each call, made at the first from the id given.
    pub async fn identity(&self, fresh: Uuid) -> Result<Uuid> {
        meta::identity(&self.writer, fresh).await
    }

    /// Ends all connections.
    pub async fn close(&self) {
        // Both are pools that can only fail by being closed already.
        let _ = self.reader.close_by_ref().await;
        let _ = self.writer.close_by_ref().await;
    }
}
