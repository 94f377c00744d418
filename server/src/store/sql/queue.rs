//! What waits: the claim and the questions about the queue. Each has a partial index of its own (see the migrations),
//! and names that index's condition in its words.

use std::collections::BTreeMap;

use kiln_core::{
    Millis,
    id::{AgentId, BuildId, ClassId, JobId, ProjectId},
    schedule::{Candidate, Class},
};
use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, EntityTrait, ExprTrait, FromQueryResult, QueryFilter,
    QueryOrder, QuerySelect, Statement, Value, sea_query::Expr,
};
use uuid::Uuid;

use super::{
    super::{JobRow, PROJECTS_OF_A_CLAIM, QueueRow, Result},
    class,
    error::{failed, unsigned},
    job, set,
};

/// Branches of one statement at most.
const BRANCHES: usize = 64;

/// A statement that grows with its values.
struct Text {
    backend: DbBackend,
    words: String,
    values: Vec<Value>,
}

impl Text {
    fn on(conn: &impl ConnectionTrait) -> Self {
        Self { backend: conn.get_database_backend(), words: String::new(), values: vec![] }
    }

    fn push(&mut self, text: &str) -> &mut Self {
        self.words.push_str(text);
        self
    }

    fn bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        set::push_place(&mut self.words, self.backend, self.values.len());
        self
    }

    fn list(&mut self, ids: &[Uuid]) -> &mut Self {
        for (place, id) in ids.iter().enumerate() {
            self.push(if place == 0 { "(" } else { "," }).bind(*id);
        }
        self.push(")")
    }

    /// `Job::is_due` of a queued job `j`.
    fn due(&mut self, now: Millis) -> &mut Self {
        self.push("(j.not_before<=").bind(now).push(" OR j.queued_at>").bind(now).push(")")
    }

    async fn all<R: FromQueryResult>(self, conn: &impl ConnectionTrait) -> Result<Vec<R>, DbErr> {
        let statement = Statement::from_sql_and_values(self.backend, self.words, self.values);
        R::find_by_statement(statement).all(conn).await
    }
}

#[derive(FromQueryResult)]
struct Pair {
    project: Uuid,
    class: Uuid,
}

#[derive(FromQueryResult)]
struct Found {
    id: Uuid,
    build: Uuid,
    project: Uuid,
    backend: String,
    priority: i32,
    queued_at: i64,
    preferred: Option<Uuid>,
}

/// The projects that come first, with those of the classes that they have claimable jobs of. What exists is asked by a
/// subquery that ends at the first row: Postgres makes a join of EXISTS, which reads the whole queue.
async fn pairs(
    conn: &impl ConnectionTrait,
    classes: &[Uuid],
    now: Millis,
) -> Result<Vec<Pair>, DbErr> {
    let mut text = Text::on(conn);
    text.push("SELECT t.id AS project, c.id AS class FROM (SELECT p.id, ")
        .push("p.running*1000000/(CASE WHEN p.weight<1 THEN 1 ELSE p.weight END) AS used ")
        .push("FROM project p WHERE NOT p.paused AND (p.max_running=0 OR p.running<p.max_running) ")
        .push("AND (SELECT 1 FROM job j WHERE j.claimable AND j.class IN ")
        .list(classes)
        .push(" AND j.project=p.id AND ")
        .due(now)
        .push(&format!(
            " LIMIT 1)=1 ORDER BY used, p.id LIMIT {PROJECTS_OF_A_CLAIM}) t, class c WHERE c.id IN "
        ))
        .list(classes)
        .push(" AND (SELECT 1 FROM job j WHERE j.claimable AND j.class=c.id ")
        .push("AND j.project=t.id AND ")
        .due(now)
        .push(" LIMIT 1)=1 ORDER BY t.used, t.id, c.id");
    text.all(conn).await
}

/// The first jobs of each pair. One branch a pair, so that each reads a few entries of the index and no more.
async fn firsts(
    conn: &impl ConnectionTrait,
    pairs: &[(Uuid, Uuid)],
    each: u32,
    now: Millis,
) -> Result<Vec<Found>, DbErr> {
    let mut found = vec![];
    for piece in pairs.chunks(BRANCHES) {
        let mut text = Text::on(conn);
        for (place, (project, class)) in set::padded(piece).into_iter().enumerate() {
            text.push(if place == 0 { "" } else { " UNION ALL " })
                .push("SELECT * FROM (SELECT j.id, j.build, j.project, j.backend, j.priority, j.queued_at, ")
                .push("(SELECT a.agent FROM affinity a WHERE a.key=j.affinity) AS preferred ")
                .push("FROM job j WHERE j.claimable AND j.class=")
                .bind(class)
                .push(" AND j.project=")
                .bind(project)
                .push(" AND ")
                .due(now)
                .push(" ORDER BY j.priority DESC, j.queued_at, j.id LIMIT ")
                .bind(i64::from(each))
                .push(&format!(") q{place}"));
        }
        found.extend(text.all::<Found>(conn).await?);
    }
    Ok(found)
}

pub(super) async fn candidates(
    conn: &impl ConnectionTrait,
    classes: &[ClassId],
    each: u32,
    now: Millis,
) -> Result<Vec<(Candidate, BuildId)>> {
    let mut classes: Vec<Uuid> = classes.iter().map(|class| class.uuid()).collect();
    classes.sort_unstable();
    classes.dedup();
    if classes.is_empty() {
        return Ok(vec![]);
    }
    let mut order = BTreeMap::new();
    let mut wanted = vec![];
    for piece in classes.chunks(set::MOST) {
        let found = pairs(conn, &set::padded(piece), now).await.map_err(failed("rank projects"))?;
        for pair in found {
            let next = order.len();
            order.entry(pair.project).or_insert(next);
            wanted.push((pair.project, pair.class));
        }
    }
    let mut found = firsts(conn, &wanted, each, now).await.map_err(failed("find candidates"))?;
    let place = |found: &Found| order.get(&found.project).copied();
    found.sort_by_key(|found| (place(found), -found.priority, found.queued_at, found.id));
    found.dedup_by_key(|found| found.id);
    let mut taken: BTreeMap<Uuid, u32> = BTreeMap::new();
    found.retain(|found| {
        let taken = taken.entry(found.project).or_default();
        *taken += 1;
        *taken <= each
    });
    Ok(found.into_iter().map(candidate).collect())
}

fn candidate(found: Found) -> (Candidate, BuildId) {
    let candidate = Candidate {
        job: JobId::from_uuid(found.id),
        project: ProjectId::from_uuid(found.project),
        backend: found.backend,
        priority: found.priority,
        queued_at: found.queued_at,
        preferred: found.preferred.map(AgentId::from_uuid),
    };
    (candidate, BuildId::from_uuid(found.build))
}

/// Classes that have claimable jobs.
pub(super) async fn waiting_classes(
    conn: &impl ConnectionTrait,
) -> Result<BTreeMap<ClassId, Class>> {
    let waits = "(SELECT 1 FROM job j WHERE j.claimable AND j.class=class.id LIMIT 1)=1";
    let select = class::Entity::find().filter(Expr::cust(waits));
    let found: Vec<(ClassId, Class)> = set::rows(conn, select, "find waiting classes").await?;
    Ok(found.into_iter().collect())
}

#[derive(FromQueryResult)]
struct Count {
    project: Uuid,
    jobs: i64,
    oldest: Option<i64>,
}

pub(super) async fn by_project(conn: &impl ConnectionTrait) -> Result<Vec<QueueRow>> {
    let action = "count the queue";
    let mut queued = Text::on(conn);
    queued
        .push("SELECT project, COUNT(*) AS jobs, MIN(queued_at) AS oldest FROM job ")
        .push("WHERE not_before IS NOT NULL GROUP BY project");
    let mut running = Text::on(conn);
    running.push(
        "SELECT project, COUNT(*) AS jobs, NULL AS oldest FROM lease WHERE open GROUP BY project",
    );
    let queued: Vec<Count> = queued.all(conn).await.map_err(failed(action))?;
    let mut rows = BTreeMap::new();
    for count in queued {
        let project = ProjectId::from_uuid(count.project);
        let queued = unsigned("job", "project", count.jobs)?;
        rows.insert(project, QueueRow { project, queued, running: 0, oldest: count.oldest });
    }
    let running: Vec<Count> = running.all(conn).await.map_err(failed(action))?;
    for count in running {
        let project = ProjectId::from_uuid(count.project);
        let empty = || QueueRow { project, queued: 0, running: 0, oldest: None };
        rows.entry(project).or_insert_with(empty).running =
            unsigned("lease", "project", count.jobs)?;
    }
    Ok(rows.into_values().collect())
}

pub(super) async fn oldest(conn: &impl ConnectionTrait, limit: u32) -> Result<Vec<JobRow>> {
    let select = job::Entity::find()
        .filter(Expr::col((job::Entity, job::Column::NotBefore)).is_not_null())
        .order_by_asc(job::Column::QueuedAt)
        .order_by_asc(job::Column::Id)
        .limit(u64::from(limit));
    set::rows(conn, select, "read the oldest jobs of the queue").await
}

#[derive(FromQueryResult)]
struct Number {
    number: Option<i64>,
}

async fn number(
    conn: &impl ConnectionTrait,
    text: Text,
    action: &'static str,
) -> Result<Option<i64>> {
    let found: Vec<Number> = text.all(conn).await.map_err(failed(action))?;
    Ok(found.into_iter().next().and_then(|row| row.number))
}

pub(super) async fn ahead_of(conn: &impl ConnectionTrait, job: &JobRow) -> Result<u32> {
    let mut text = Text::on(conn);
    text.push("SELECT COUNT(*) AS number FROM job WHERE claimable AND class=")
        .bind(job.class.uuid())
        .push(" AND (priority>")
        .bind(job.priority)
        .push(" OR (priority=")
        .bind(job.priority)
        .push(" AND (queued_at,id)<(")
        .bind(job.job.queued_at)
        .push(",")
        .bind(job.job.id.uuid())
        .push(")))");
    let ahead = number(conn, text, "count the jobs ahead").await?.unwrap_or_default();
    unsigned("job", "queued_at", ahead)
}

#[derive(FromQueryResult)]
struct Overdue {
    id: Uuid,
    build: Uuid,
}

pub(super) async fn overdue(
    conn: &impl ConnectionTrait,
    now: Millis,
    limit: u32,
) -> Result<Vec<(BuildId, JobId)>> {
    let mut text = Text::on(conn);
    text.push("SELECT id, build FROM job WHERE not_before IS NOT NULL ")
        .push("AND queued_at + queue_timeout_ms<=")
        .bind(now)
        .push(" ORDER BY queued_at + queue_timeout_ms, id LIMIT ")
        .bind(i64::from(limit));
    let found: Vec<Overdue> = text.all(conn).await.map_err(failed("find overdue jobs"))?;
    let ids = |row: Overdue| (BuildId::from_uuid(row.build), JobId::from_uuid(row.id));
    Ok(found.into_iter().map(ids).collect())
}

pub(super) async fn next_not_before(
    conn: &impl ConnectionTrait,
    now: Millis,
) -> Result<Option<Millis>> {
    let mut text = Text::on(conn);
    // Zero is no wait: only a job that is tried again has a moment to wait for.
    text.push("SELECT MIN(not_before) AS number FROM job ")
        .push("WHERE claimable AND not_before>0 AND not_before>")
        .bind(now);
    number(conn, text, "find the next end of a backoff").await
}
