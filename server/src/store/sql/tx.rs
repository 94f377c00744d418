//! Opens every transaction. On SQLite a writer begins IMMEDIATE: one that reads first and writes later fails with
//! "database is locked" as soon as another wrote in between, whatever the busy timeout.

use std::{ops::Deref, sync::Arc};

use sea_orm::{DatabaseTransaction, SqliteTransactionMode, TransactionOptions, TransactionTrait};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    super::{Error, Result},
    Sql,
    bound::Bounded,
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
    tx: Bounded<DatabaseTransaction>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl SqlTx {
    pub(super) async fn finish(self) -> Result<()> {
        let (tx, bound) = self.tx.into_parts();
        bound.answer("commit", tx.commit()).await.map_err(failed("commit"))
    }
}

impl Deref for SqlTx {
    type Target = Bounded<DatabaseTransaction>;

    fn deref(&self) -> &Bounded<DatabaseTransaction> {
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
        let bound = self.writer.bound();
        let begun = self.writer.unbounded().begin_with_options(options);
        let begun = bound.answer("begin", begun).await.map_err(failed("begin a write"))?;
        let tx = Bounded::new(begun, bound.clone());
        Ok(SqlTx { tx, _turn: turn })
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::ConnectionTrait;

    use crate::store::sql::{Options, connect};

    #[tokio::test]
    async fn what_follows_a_transaction_that_sqlite_ended_itself_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("kiln.db").display());
        let sql = connect(&url, &Options::default()).await.unwrap();
        let broken = sql.open().await.unwrap();
        // As SQLite does where the disk is full.
        broken.execute_unprepared("ROLLBACK").await.unwrap();
        drop(broken);
        // One that is given up, and one that is not.
        drop(sql.open().await.unwrap());
        let tx = sql.open().await.unwrap();
        tx.execute_unprepared("CREATE TABLE kept (id INTEGER)").await.unwrap();
        tx.finish().await.unwrap();
        sql.reader.execute_unprepared("SELECT id FROM kept").await.expect("it was committed");
    }
}
