//! The store on SQLite and Postgres, one text of statements for both.
//!
//! One table a file: its entity, its rows to and from core types, the statements on it. `tx` opens every transaction,
//! `set` writes many rows in one statement, `queue` asks what waits. Nothing here decides anything.

mod affinity;
mod agent;
mod artifact;
mod audit;
mod authority;
mod blobs;
mod bound;
mod build;
mod census;
mod class;
mod connect;
mod error;
mod event;
mod evicted_agent;
mod expire;
mod group;
mod job;
mod job_spec;
mod lease;
mod logs;
mod meta;
mod migrate;
mod need;
mod project;
mod query;
mod queue;
mod read;
mod secret;
mod secret_grant;
mod session;
mod set;
pub mod snapshot;
pub mod ssl;
mod sweep;
mod token;
mod tx;
mod write;

use std::sync::Arc;

use sea_orm::DatabaseConnection;
use tokio::time::timeout;
use uuid::Uuid;

use super::Result;
use bound::{Bounded, SIGN_OF_LIFE};

pub use connect::{Options, connect};
pub use ssl::Ssl;

/// A database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sql {
    reader: Bounded<DatabaseConnection>,
    writer: Bounded<DatabaseConnection>,
    /// SQLite has one writer; the rest of them wait here.
    queue: Option<Arc<tx::Queue>>,
}

impl Sql {
    /// What tells this database from another: the same at each call, made at the first from the id given.
    pub async fn identity(&self, fresh: Uuid) -> Result<Uuid> {
        meta::identity(&self.writer, fresh).await
    }

    /// Ends all connections.
    pub async fn close(&self) {
        // Both are pools that can only fail by being closed already. One whose other side is gone never ends.
        let _ = timeout(SIGN_OF_LIFE, self.reader.unbounded().close_by_ref()).await;
        let _ = timeout(SIGN_OF_LIFE, self.writer.unbounded().close_by_ref()).await;
    }
}
