//! Table `token`: digests of bearer tokens.

use kiln_core::{
    Millis,
    id::{AgentId, ProjectId, TokenId},
};
use sea_orm::{Condition, entity::prelude::*, sea_query::Expr};

use super::{
    super::{Error, Result, Role, TokenRow},
    error::{corrupt, failed, taken},
    set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "token")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub name: String,
    pub role: String,
    pub project: Option<Uuid>,
    pub secret_sha256: Vec<u8>,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub used_by: Option<Uuid>,
    pub used_at: Option<i64>,
    pub last_used_at: Option<i64>,
    pub old_sha256: Option<Vec<u8>>,
    pub old_until: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&TokenRow> for Model {
    fn from(row: &TokenRow) -> Self {
        Self {
            id: row.id.uuid(),
            name: row.name.clone(),
            role: row.role.as_str().to_owned(),
            project: row.project.map(ProjectId::uuid),
            secret_sha256: row.secret_sha256.clone(),
            created_at: row.created_at,
            expires_at: row.expires_at,
            used_by: row.used.map(|(agent, _)| agent.uuid()),
            used_at: row.used.map(|(_, at)| at),
            last_used_at: row.last_used_at,
            old_sha256: row.old_secret.as_ref().map(|(digest, _)| digest.clone()),
            old_until: row.old_secret.as_ref().map(|(_, until)| *until),
        }
    }
}

impl TryFrom<Model> for TokenRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok(Self {
            id: TokenId::from_uuid(model.id),
            name: model.name,
            role: Role::parse(&model.role).ok_or_else(|| corrupt("token", "role", &model.role))?,
            project: model.project.map(ProjectId::from_uuid),
            secret_sha256: model.secret_sha256,
            created_at: model.created_at,
            expires_at: model.expires_at,
            used: model.used_by.map(AgentId::from_uuid).zip(model.used_at),
            last_used_at: model.last_used_at,
            old_secret: model.old_sha256.zip(model.old_until),
        })
    }
}

pub(super) async fn insert(conn: &impl ConnectionTrait, row: &TokenRow) -> Result<()> {
    set::insert(conn, &[Model::from(row)], "").await.map_err(taken(
        "insert a token",
        "token",
        &row.name,
    ))
}

pub(super) async fn save(conn: &impl ConnectionTrait, row: &TokenRow) -> Result<()> {
    let columns = [
        Column::Name,
        Column::Role,
        Column::Project,
        Column::SecretSha256,
        Column::ExpiresAt,
        Column::UsedBy,
        Column::UsedAt,
        Column::OldSha256,
        Column::OldUntil,
    ];
    set::update(conn, &[Model::from(row)], Column::Id, &columns)
        .await
        .map_err(failed("save a token"))
}

pub(super) async fn delete(conn: &impl ConnectionTrait, id: TokenId) -> Result<bool> {
    let deleted = Entity::delete_by_id(id.uuid()).exec(conn).await;
    Ok(deleted.map_err(failed("delete a token"))?.rows_affected > 0)
}

/// A later moment stays: replicas tell of the same token.
pub(super) async fn touch(conn: &impl ConnectionTrait, used: &[(TokenId, Millis)]) -> Result<()> {
    for (id, at) in used {
        let older =
            Condition::any().add(Column::LastUsedAt.is_null()).add(Column::LastUsedAt.lt(*at));
        Entity::update_many()
            .col_expr(Column::LastUsedAt, Expr::value(*at))
            .filter(Column::Id.eq(id.uuid()))
            .filter(older)
            .exec(conn)
            .await
            .map_err(failed("touch tokens"))?;
    }
    Ok(())
}
