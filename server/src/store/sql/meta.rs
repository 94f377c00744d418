//! Table `meta`: facts about the store itself.

use sea_orm::entity::prelude::*;

use super::{
    super::Result,
    error::{corrupt, failed},
    set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "meta")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub key: String,
    pub value: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

pub(super) async fn identity(conn: &impl ConnectionTrait, fresh: Uuid) -> Result<Uuid> {
    let action = "read the identity of the store";
    let row = Model { key: "identity".to_owned(), value: fresh.to_string() };
    let tail = "ON CONFLICT (\"key\") DO NOTHING";
    set::insert(conn, &[row], tail).await.map_err(failed(action))?;
    let row = Entity::find_by_id("identity").one(conn).await.map_err(failed(action))?;
    let text = row.map(|row| row.value).unwrap_or_default();
    text.parse().map_err(|_| corrupt("meta", "identity", text))
}
