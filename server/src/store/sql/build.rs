//! Table `build`: the counts of its jobs, and the state folded from them.

use kiln_core::{
    Millis,
    build::Counts,
    id::{BuildId, ProjectId},
};
use sea_orm::{
    Condition, ExprTrait, QueryOrder, QuerySelect,
    entity::prelude::*,
    sea_query::{Func, LikeExpr, Query},
};

use super::{
    super::{BuildFilter, BuildRow, Error, Result},
    error::{failed, from_json, to_json, unsigned},
    set,
};

const TABLE: &str = "build";

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "build")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub project: Uuid,
    pub title: String,
    pub key: Option<String>,
    pub digest: String,
    pub priority: i32,
    pub annotations: String,
    pub submitter: String,
    pub blocked: i64,
    pub queued: i64,
    pub leased: i64,
    pub running: i64,
    pub succeeded: i64,
    pub failed: i64,
    pub cancelled: i64,
    pub tolerated: i64,
    pub state: String,
    pub last_event: i64,
    pub created_at: i64,
    pub finished_at: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// What a transition changes.
const CHANGING: [Column; 11] = [
    Column::Blocked,
    Column::Queued,
    Column::Leased,
    Column::Running,
    Column::Succeeded,
    Column::Failed,
    Column::Cancelled,
    Column::Tolerated,
    Column::State,
    Column::LastEvent,
    Column::FinishedAt,
];

impl From<&BuildRow> for Model {
    fn from(row: &BuildRow) -> Self {
        Self {
            id: row.id.uuid(),
            project: row.project.uuid(),
            title: row.title.clone(),
            key: row.key.clone(),
            digest: row.digest.clone(),
            priority: row.priority,
            annotations: to_json(&row.annotations),
            submitter: row.submitter.clone(),
            blocked: row.counts.blocked.into(),
            queued: row.counts.queued.into(),
            leased: row.counts.leased.into(),
            running: row.counts.running.into(),
            succeeded: row.counts.succeeded.into(),
            failed: row.counts.failed.into(),
            cancelled: row.counts.cancelled.into(),
            tolerated: row.counts.tolerated.into(),
            state: row.counts.state().as_str().to_owned(),
            last_event: row.last_event,
            created_at: row.created_at,
            finished_at: row.finished_at,
        }
    }
}

impl TryFrom<Model> for BuildRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok(Self {
            id: BuildId::from_uuid(model.id),
            project: ProjectId::from_uuid(model.project),
            title: model.title,
            key: model.key,
            digest: model.digest,
            priority: model.priority,
            annotations: from_json(TABLE, "annotations", &model.annotations)?,
            submitter: model.submitter,
            counts: Counts {
                blocked: unsigned(TABLE, "blocked", model.blocked)?,
                queued: unsigned(TABLE, "queued", model.queued)?,
                leased: unsigned(TABLE, "leased", model.leased)?,
                running: unsigned(TABLE, "running", model.running)?,
                succeeded: unsigned(TABLE, "succeeded", model.succeeded)?,
                failed: unsigned(TABLE, "failed", model.failed)?,
                cancelled: unsigned(TABLE, "cancelled", model.cancelled)?,
                tolerated: unsigned(TABLE, "tolerated", model.tolerated)?,
            },
            last_event: model.last_event,
            created_at: model.created_at,
            finished_at: model.finished_at,
        })
    }
}

/// Inserts what has no twin of its key; the ids of those.
pub(super) async fn insert(conn: &impl ConnectionTrait, rows: &[BuildRow]) -> Result<Vec<BuildId>> {
    let action = "insert builds";
    let mut models: Vec<_> = rows.iter().map(Model::from).collect();
    // Two transactions that insert the same keys wait for each other in one order only.
    models.sort_by(|a, b| (a.project, &a.key, a.id).cmp(&(b.project, &b.key, b.id)));
    let tail = "ON CONFLICT (\"project\",\"key\") DO NOTHING RETURNING \"id\"";
    let inserted = set::insert_returning(conn, &models, tail).await.map_err(failed(action))?;
    inserted
        .iter()
        .map(|row| row.try_get_by_index(0).map(BuildId::from_uuid).map_err(failed(action)))
        .collect()
}

pub(super) async fn save(conn: &impl ConnectionTrait, rows: &[BuildRow]) -> Result<()> {
    let models: Vec<_> = rows.iter().map(Model::from).collect();
    set::update(conn, &models, Column::Id, &CHANGING).await.map_err(failed("save builds"))
}

pub(super) async fn by_key(
    conn: &impl ConnectionTrait,
    keys: &[(ProjectId, String)],
) -> Result<Vec<BuildRow>> {
    let mut found = vec![];
    for piece in keys.chunks(100) {
        let one = |(project, key): &(ProjectId, String)| {
            Condition::all()
                .add(Column::Project.eq(project.uuid()))
                .add(Column::Key.eq(key.as_str()))
        };
        let any = set::padded(piece).iter().map(one).fold(Condition::any(), Condition::add);
        let select = Entity::find().filter(any).order_by_asc(Column::Id);
        found.extend(set::rows::<BuildRow, Entity>(conn, select, "find builds by key").await?);
    }
    Ok(found)
}

/// A page behind `after`.
pub(super) async fn page(
    conn: &impl ConnectionTrait,
    filter: &BuildFilter,
    after: Option<(Millis, BuildId)>,
    limit: u32,
) -> Result<Vec<BuildRow>> {
    let position = || Expr::tuple([Expr::col(Column::CreatedAt), Expr::col(Column::Id)]);
    let behind = after.map(|(at, id)| {
        let after = Expr::tuple([Expr::val(at), Expr::val(id.uuid())]);
        if filter.oldest_first { position().gt(after) } else { position().lt(after) }
    });
    let states = filter.states.iter().map(|state| state.as_str());
    let condition = Condition::all()
        .add_option(filter.project.map(|project| Column::Project.eq(project.uuid())))
        .add_option((!filter.states.is_empty()).then(|| Column::State.is_in(states)))
        .add_option(filter.created_from.map(|from| Column::CreatedAt.gte(from)))
        .add_option(filter.created_until.map(|until| Column::CreatedAt.lt(until)))
        .add_option(contains(&filter.title_contains))
        .add_option(behind);
    let select = Entity::find().filter(condition).limit(u64::from(limit));
    let select = if filter.oldest_first {
        select.order_by_asc(Column::CreatedAt).order_by_asc(Column::Id)
    } else {
        select.order_by_desc(Column::CreatedAt).order_by_desc(Column::Id)
    };
    set::rows(conn, select, "list builds").await
}

fn contains(text: &str) -> Option<sea_orm::sea_query::SimpleExpr> {
    if text.is_empty() {
        return None;
    }
    let escaped = text.to_lowercase().replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
    let like = LikeExpr::new(format!("%{escaped}%")).escape('\\');
    Some(Expr::expr(Func::lower(Expr::col(Column::Title))).like(like))
}

/// Builds that are not done by their counts, or of which a lease is open.
pub(super) fn active() -> Condition {
    let leased = Query::select()
        .column(super::lease::Column::Build)
        .from(super::lease::Entity)
        .and_where(Expr::col(super::lease::Column::Open))
        .to_owned();
    Condition::any()
        .add(Column::State.is_in(["queued", "running"]))
        .add(Column::Id.in_subquery(leased))
}
