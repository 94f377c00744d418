//! Counts of what waits and of what is open, for the metrics.

use kiln_core::{Millis, id::ProjectId, session::LeasePhase};
use sea_orm::{ConnectionTrait, FromQueryResult, Statement, Value};
use uuid::Uuid;

use super::{
    super::{Census, Depth, Result, Wait},
    error::{corrupt, failed, unsigned},
};

const ACTION: &str = "count what waits";

#[derive(FromQueryResult)]
struct Waiting {
    project: Uuid,
    wait: String,
    jobs: i64,
    oldest: i64,
}

#[derive(FromQueryResult)]
struct Phase {
    phase: String,
    leases: i64,
}

#[derive(FromQueryResult)]
struct Sessions {
    sessions: i64,
}

async fn all<R: FromQueryResult>(
    conn: &impl ConnectionTrait,
    text: &str,
    values: Vec<Value>,
) -> Result<Vec<R>> {
    let statement = Statement::from_sql_and_values(conn.get_database_backend(), text, values);
    R::find_by_statement(statement).all(conn).await.map_err(failed(ACTION))
}

pub(super) async fn take(conn: &impl ConnectionTrait, now: Millis) -> Result<Census> {
    let mut census = Census::default();
    // `Job::is_due` in SQL. Both databases take `$1` for the first value.
    let text = "SELECT project, CASE WHEN NOT claimable THEN 'group' \
         WHEN not_before>$1 AND queued_at<=$1 THEN 'backoff' ELSE 'slot' END AS wait, \
         COUNT(*) AS jobs, MIN(queued_at) AS oldest \
         FROM job WHERE not_before IS NOT NULL GROUP BY project, wait";
    for row in all::<Waiting>(conn, text, vec![now.into()]).await? {
        census.queue.push(Depth {
            project: ProjectId::from_uuid(row.project),
            wait: wait(&row.wait)?,
            jobs: unsigned("job", "project", row.jobs)?,
            oldest: row.oldest,
        });
    }
    census.queue.sort_by_key(|depth| (depth.project, depth.wait));
    let text = "SELECT phase, COUNT(*) AS leases FROM lease WHERE open GROUP BY phase";
    for row in all::<Phase>(conn, text, vec![]).await? {
        let leases = unsigned("lease", "phase", row.leases)?;
        match LeasePhase::parse(&row.phase) {
            Some(LeasePhase::Leased) => census.leased = leases,
            _ => census.running += leases,
        }
    }
    let text = "SELECT COUNT(*) AS sessions FROM session WHERE open";
    for row in all::<Sessions>(conn, text, vec![]).await? {
        census.sessions = unsigned("session", "open", row.sessions)?;
    }
    Ok(census)
}

fn wait(word: &str) -> Result<Wait> {
    let found = Wait::ALL.into_iter().find(|wait| wait.as_str() == word);
    found.ok_or_else(|| corrupt("job", "wait", word))
}
