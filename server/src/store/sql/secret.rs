//! Table `secret`: values, encrypted, each from when it was set until it was replaced or deleted.

use kiln_core::{
    Millis,
    id::{BuildId, ProjectId, SecretId},
};
use sea_orm::{
    Condition, QueryOrder, QuerySelect,
    entity::prelude::*,
    sea_query::{ExprTrait, LockType, Query},
};

use super::{
    super::{Error, Result, SecretRow},
    build,
    error::{failed, taken, unsigned},
    secret_grant, set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "secret")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub project: Uuid,
    pub build: Option<Uuid>,
    pub name: String,
    pub size: i64,
    pub key: String,
    pub sealed: Vec<u8>,
    pub set_at: i64,
    pub set_by: String,
    pub ended_at: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&SecretRow> for Model {
    fn from(row: &SecretRow) -> Self {
        Self {
            id: row.id.uuid(),
            project: row.project.uuid(),
            build: row.build.map(BuildId::uuid),
            name: row.name.clone(),
            size: row.size.into(),
            key: row.key.clone(),
            sealed: row.sealed.clone(),
            set_at: row.set_at,
            set_by: row.set_by.clone(),
            ended_at: row.ended_at,
        }
    }
}

impl TryFrom<Model> for SecretRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok(Self {
            id: SecretId::from_uuid(model.id),
            project: ProjectId::from_uuid(model.project),
            build: model.build.map(BuildId::from_uuid),
            name: model.name,
            size: unsigned("secret", "size", model.size)?,
            key: model.key,
            sealed: model.sealed,
            set_at: model.set_at,
            set_by: model.set_by,
            ended_at: model.ended_at,
        })
    }
}

pub(super) async fn insert(conn: &impl ConnectionTrait, rows: &[SecretRow]) -> Result<()> {
    let models: Vec<_> = rows.iter().map(Model::from).collect();
    let name = rows.first().map_or("", |row| &row.name);
    set::insert(conn, &models, "").await.map_err(taken("insert secrets", "secret", name))
}

pub(super) async fn save_sealed(conn: &impl ConnectionTrait, rows: &[SecretRow]) -> Result<()> {
    let models: Vec<_> = rows.iter().map(Model::from).collect();
    set::update(conn, &models, Column::Id, &[Column::Key, Column::Sealed])
        .await
        .map_err(failed("save secrets"))
}

/// Those of a project by name, without their values.
pub(super) async fn of_project(
    conn: &impl ConnectionTrait,
    project: ProjectId,
) -> Result<Vec<SecretRow>> {
    let heads = [
        Column::Id,
        Column::Project,
        Column::Build,
        Column::Name,
        Column::Size,
        Column::Key,
        Column::SetAt,
        Column::SetBy,
        Column::EndedAt,
    ];
    let select = Entity::find()
        .select_only()
        .columns(heads)
        .expr_as(Expr::val(Vec::<u8>::new()), "sealed")
        .filter(current(project, None));
    let mut rows: Vec<SecretRow> = set::rows(conn, select, "list secrets").await?;
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

/// Neither replaced nor deleted: the project's own, or those of one of its builds too.
fn current(project: ProjectId, build: Option<BuildId>) -> Condition {
    let mut scope = Condition::any().add(Column::Build.is_null());
    if let Some(build) = build {
        scope = scope.add(Column::Build.eq(build.uuid()));
    }
    Condition::all()
        .add(Column::Project.eq(project.uuid()))
        .add(Column::EndedAt.is_null())
        .add(scope)
}

pub(super) async fn lock(
    conn: &impl ConnectionTrait,
    project: ProjectId,
    build: Option<BuildId>,
    names: &[String],
    lock: LockType,
) -> Result<Vec<SecretRow>> {
    let mut found = vec![];
    for piece in names.chunks(set::MOST) {
        let select = Entity::find()
            .filter(current(project, build))
            .filter(Column::Name.is_in(set::padded(piece)))
            .order_by_asc(Column::Id)
            .lock(lock);
        found.extend(set::rows(conn, select, "lock secrets").await?);
    }
    Ok(found)
}

pub(super) async fn count(conn: &impl ConnectionTrait, project: ProjectId) -> Result<u64> {
    let select = Entity::find().filter(current(project, None));
    select.count(conn).await.map_err(failed("count secrets"))
}

pub(super) async fn keys(conn: &impl ConnectionTrait) -> Result<Vec<String>> {
    let select = Entity::find().select_only().column(Column::Key).distinct();
    select.into_tuple().all(conn).await.map_err(failed("read the keys of secrets"))
}

pub(super) async fn of_other_keys(
    conn: &impl ConnectionTrait,
    key: &str,
    limit: u32,
) -> Result<Vec<SecretRow>> {
    let select = Entity::find().filter(Column::Key.ne(key)).order_by_asc(Column::Id);
    set::rows(conn, select.limit(u64::from(limit)), "read secrets of other keys").await
}

/// Builds that are done and have secrets yet.
pub(super) async fn done_builds(conn: &impl ConnectionTrait, limit: u32) -> Result<Vec<BuildId>> {
    let done = Query::select()
        .column(build::Column::Id)
        .from(build::Entity)
        .and_where(build::Column::FinishedAt.is_not_null())
        .to_owned();
    let select = Entity::find()
        .select_only()
        .column(Column::Build)
        .distinct()
        .filter(Column::EndedAt.is_null())
        .filter(Column::Build.in_subquery(done))
        .limit(u64::from(limit));
    let found: Vec<Uuid> =
        select.into_tuple().all(conn).await.map_err(failed("find secrets of done builds"))?;
    Ok(found.into_iter().map(BuildId::from_uuid).collect())
}

/// Ends current ones whose column is one of the ids.
pub(super) async fn end(
    conn: &impl ConnectionTrait,
    column: Column,
    ids: impl IntoIterator<Item = Uuid>,
    at: Millis,
) -> Result<()> {
    let ids: Vec<Uuid> = ids.into_iter().collect();
    for piece in ids.chunks(set::MOST) {
        Entity::update_many()
            .col_expr(Column::EndedAt, Expr::value(at))
            .filter(column.is_in(set::padded(piece)))
            .filter(Column::EndedAt.is_null())
            .exec(conn)
            .await
            .map_err(failed("end secrets"))?;
    }
    Ok(())
}

/// Deletes what was replaced or deleted and no lease was given.
pub(super) async fn delete_ended(conn: &impl ConnectionTrait) -> Result<u64> {
    let given = Query::select()
        .expr(Expr::val(1))
        .from(secret_grant::Entity)
        .and_where(
            Expr::col((secret_grant::Entity, secret_grant::Column::Secret))
                .equals((Entity, Column::Id)),
        )
        .to_owned();
    let deleted = Entity::delete_many()
        .filter(Column::EndedAt.is_not_null())
        .filter(Expr::exists(given).not())
        .exec(conn)
        .await
        .map_err(failed("delete ended secrets"))?;
    Ok(deleted.rows_affected)
}
