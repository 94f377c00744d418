//! Agents that were evicted: who still presents such a credential is told so.

use sea_orm_migration::prelude::*;

use crate::schema::{big_integer, binary, pk_uuid, table, text};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![
            pk_uuid("id"),
            text("name"),
            binary("credential_sha256"),
            big_integer("evicted_at"),
        ];
        table(manager, "evicted_agent", columns, &[], vec![]).await
    }
}
