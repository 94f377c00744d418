//! Opens every transaction. On SQLite a writer begins IMMEDIATE: one that reads first and writes later fails with
//! "database is locked" as soon as another wrote in between, whatever the busy timeout.

use std::{ops::Deref, sync::Arc};

use sea_orm::{DatabaseTransaction, SqliteTransactionMode, TransactionOptions, TransactionTrait};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    super::{Error, Result},
    Sql,
    error::failed,
};

/// Writers that wait at most; more than that many is a server that can't keep up.
const WAITING: usize = 1_024;

/// The writers of SQLite, in the order in which they came.
#[derive(Debug)]
pub(super) struct Queue {
    places: Arc<Semaphore>,
    turn: Arc<Semaphore>,
}

impl Default for Queue {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(WAITING)), turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Queue {
    async fn turn(&self) -> Result<OwnedSemaphorePermit> {
        let full = || Error::Database {
            action: "begin a write",
            source: format!("{WAITING} writers wait already").into(),
        };
        let _place = self.places.try_acquire().map_err(|_| full())?;
        Arc::clone(&self.turn)
            .acquire_owned()
            .await
            .map_err(|closed| Error::Database { action: "begin a write", source: closed.into() })
    }
}

/// One write transaction; dropped, it is rolled back.
#[derive(Debug)]
pub(super) struct SqlTx {
    // The order of the fields is the order in which they are dropped: the rollback comes before the next one's turn.
    tx: DatabaseTransaction,
    _turn: Option<OwnedSemaphorePermit>,
}

impl SqlTx {
    pub(super) async fn finish(self) -> Result<()> {
        self.tx.commit().await.map_err(failed("commit"))
    }
}

impl Deref for SqlTx {
    type Target = DatabaseTransaction;

    fn deref(&self) -> &DatabaseTransaction {
        &self.tx
    }
}

impl Sql {
    pub(super) async fn open(&self) -> Result<SqlTx> {
        let turn = match &self.queue {
            Some(queue) => Some(queue.turn().await?),
            None => None,
        };
        let options = TransactionOptions {
            isolation_level: None,
            access_mode: None,
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        };
        let tx = self.writer.begin_with_options(options).await.map_err(failed("begin a write"))?;
        Ok(SqlTx { tx, _turn: turn })
    }
}
