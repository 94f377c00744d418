//! Table `evicted_agent`: who was an agent.

use kiln_core::id::AgentId;
use sea_orm::entity::prelude::*;

use super::{
    super::{Error, EvictedAgentRow, Result},
    error::failed,
    set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "evicted_agent")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub name: String,
    pub credential_sha256: Vec<u8>,
    pub evicted_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl TryFrom<Model> for EvictedAgentRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok(Self {
            id: AgentId::from_uuid(model.id),
            name: model.name,
            credential_sha256: model.credential_sha256,
            evicted_at: model.evicted_at,
        })
    }
}

pub(super) async fn insert(conn: &impl ConnectionTrait, row: &EvictedAgentRow) -> Result<()> {
    let model = Model {
        id: row.id.uuid(),
        name: row.name.clone(),
        credential_sha256: row.credential_sha256.clone(),
        evicted_at: row.evicted_at,
    };
    set::insert(conn, &[model], "").await.map_err(failed("note an evicted agent"))
}
