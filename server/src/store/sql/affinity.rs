//! Table `affinity`: which agent has which caches warm.

use kiln_core::{Millis, id::AgentId};
use sea_orm::entity::prelude::*;

use super::{super::Result, error::failed, set};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "affinity")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub key: String,
    pub agent: Uuid,
    pub at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

pub(super) async fn save(
    conn: &impl ConnectionTrait,
    rows: &[(String, AgentId, Millis)],
) -> Result<()> {
    let mut models: Vec<_> = rows
        .iter()
        .map(|(key, agent, at)| Model { key: key.clone(), agent: agent.uuid(), at: *at })
        .collect();
    models.sort_by(|a, b| a.key.cmp(&b.key));
    models.dedup_by(|later, earlier| later.key == earlier.key);
    // An agent that has its caches warm anyway is no news, and no write.
    let tail = "ON CONFLICT (\"key\") DO UPDATE SET \"agent\"=excluded.\"agent\",\"at\"=excluded.\"at\" \
         WHERE \"affinity\".\"agent\"<>excluded.\"agent\"";
    set::insert(conn, &models, tail).await.map_err(failed("save affinities"))
}
