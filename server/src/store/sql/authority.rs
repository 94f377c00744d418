//! Table `authority`: who signs certificates, and who did.

use sea_orm::{QueryOrder, entity::prelude::*};

use super::{
    super::{AuthorityRow, Error, Result},
    error::{failed, taken},
    set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "authority")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub generation: i64,
    pub certificate: Vec<u8>,
    pub bridge: Option<Vec<u8>>,
    pub key: String,
    pub sealed: Vec<u8>,
    pub created_at: i64,
    pub trusted_until: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&AuthorityRow> for Model {
    fn from(row: &AuthorityRow) -> Self {
        Self {
            generation: row.generation,
            certificate: row.certificate.clone(),
            bridge: row.bridge.clone(),
            key: row.key.clone(),
            sealed: row.sealed.clone(),
            created_at: row.created_at,
            trusted_until: row.trusted_until,
        }
    }
}

impl TryFrom<Model> for AuthorityRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok(Self {
            generation: model.generation,
            certificate: model.certificate,
            bridge: model.bridge,
            key: model.key,
            sealed: model.sealed,
            created_at: model.created_at,
            trusted_until: model.trusted_until,
        })
    }
}

pub(super) async fn all(conn: &impl ConnectionTrait) -> Result<Vec<AuthorityRow>> {
    let select = Entity::find().order_by_desc(Column::Generation);
    set::rows(conn, select, "read the authorities").await
}

pub(super) async fn insert(conn: &impl ConnectionTrait, row: &AuthorityRow) -> Result<()> {
    let name = row.generation.to_string();
    let inserted = set::insert(conn, &[Model::from(row)], "").await;
    inserted.map_err(taken("insert an authority", "authority", &name))
}

pub(super) async fn save(conn: &impl ConnectionTrait, row: &AuthorityRow) -> Result<()> {
    let columns = [Column::Key, Column::Sealed, Column::TrustedUntil];
    set::update(conn, &[Model::from(row)], Column::Generation, &columns)
        .await
        .map_err(failed("save an authority"))
}
