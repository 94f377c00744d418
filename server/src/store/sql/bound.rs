//! How long a database may take to answer. Where the other side of a connection is gone without a word, no answer ever
//! comes and no error either: whoever waits then waits for ever, and all that waits behind it.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement,
    sqlx::{self, Connection, postgres::PgConnection},
};
use tokio::time::{Instant, timeout};

use crate::metrics::Metrics;

/// Every statement of ours takes a small part of it, also where it waits for rows that others hold.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// An answer to an empty question.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// What is measured of a statement that returns rows, and of one that does not.
const QUERY: &str = "query";
const EXECUTE: &str = "execute";

/// A connection or a transaction whose statements fail when no answer comes. Whether such a statement was carried out is
/// not known, as with every connection that breaks. How long the answers take is measured.
#[derive(Debug, Clone)]
pub(super) struct Bounded<C> {
    inner: C,
    bound: Bound,
}

/// How long an answer may take, and where it is noted how long it took.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    pub(super) limit: Duration,
    pub(super) metrics: Metrics,
}

impl Bound {
    pub(super) async fn answer<T>(
        &self,
        operation: &'static str,
        answer: impl Future<Output = Result<T, DbErr>>,
    ) -> Result<T, DbErr> {
        let (limit, asked) = (self.limit, Instant::now());
        let answer = timeout(limit, answer).await;
        self.metrics.answered(operation, asked.elapsed());
        answer.unwrap_or_else(|_| {
            let message = format!("the database did not answer within {limit:?}");
            Err(DbErr::Conn(RuntimeErr::Internal(message)))
        })
    }
}

impl<C> Bounded<C> {
    pub(super) const fn new(inner: C, bound: Bound) -> Self {
        Self { inner, bound }
    }

    /// As it is, for what may take its time.
    pub(super) const fn unbounded(&self) -> &C {
        &self.inner
    }

    pub(super) const fn bound(&self) -> &Bound {
        &self.bound
    }

    pub(super) fn into_parts(self) -> (C, Bound) {
        (self.inner, self.bound)
    }
}

#[async_trait::async_trait]
impl<C: ConnectionTrait> ConnectionTrait for Bounded<C> {
    fn get_database_backend(&self) -> DbBackend {
        self.inner.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.bound.answer(EXECUTE, self.inner.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, text: &str) -> Result<ExecResult, DbErr> {
        self.bound.answer(EXECUTE, self.inner.execute_unprepared(text)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.bound.answer(QUERY, self.inner.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.bound.answer(QUERY, self.inner.query_all_raw(statement)).await
    }
}

/// Whether the connection answers. The pool itself asks the same without a bound when a connection comes back to it:
/// one that never answers would keep its place in the pool for ever.
pub(super) async fn is_alive(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let silent = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    timeout(SIGN_OF_LIFE, connection.ping()).await.map_err(silent)?.map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its other side is gone.
    struct Mute;

    #[async_trait::async_trait]
    impl ConnectionTrait for Mute {
        fn get_database_backend(&self) -> DbBackend {
            DbBackend::Postgres
        }

        async fn execute_raw(&self, _: Statement) -> Result<ExecResult, DbErr> {
            std::future::pending().await
        }

        async fn execute_unprepared(&self, _: &str) -> Result<ExecResult, DbErr> {
            std::future::pending().await
        }

        async fn query_one_raw(&self, _: Statement) -> Result<Option<QueryResult>, DbErr> {
            std::future::pending().await
        }

        async fn query_all_raw(&self, _: Statement) -> Result<Vec<QueryResult>, DbErr> {
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let connection = Bounded::new(Mute, Bound { limit: ANSWER, metrics: Metrics::default() });
        let statement = || Statement::from_string(DbBackend::Postgres, "SELECT 1");
        let errors = [
            connection.execute_raw(statement()).await.map(drop).unwrap_err(),
            connection.execute_unprepared("SELECT 1").await.map(drop).unwrap_err(),
            connection.query_one_raw(statement()).await.map(drop).unwrap_err(),
            connection.query_all_raw(statement()).await.map(drop).unwrap_err(),
        ];
        for error in errors {
            assert!(error.to_string().contains("did not answer within 30s"), "{error}");
            let error = super::super::error::failed("read a job")(error);
            assert!(matches!(error, crate::store::Error::Database { .. }), "it is tried again");
        }
    }
}
