//! Agents and their sessions.

use sea_orm_migration::prelude::*;

use crate::schema::{
    big_integer, binary, boolean, index, owned, pk_uuid, table, text, text_uniq, uuid,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![
            pk_uuid("id"),
            text_uniq("name"),
            binary("credential_sha256"),
            text("admission"),
            text("profile"),
            text("load"),
            big_integer("created_at"),
            big_integer("seen_at"),
            big_integer("epoch"),
        ];
        table(manager, "agent", columns, &[], vec![]).await?;

        let columns = vec![
            pk_uuid("id"),
            uuid("agent"),
            text("instance"),
            big_integer("epoch"),
            big_integer("beat"),
            boolean("open"),
            big_integer("opened_at"),
        ];
        table(manager, "session", columns, &[], vec![owned("session", "agent", "agent")]).await?;
        index(manager, "CREATE INDEX session_agent ON session (agent)").await?;
        index(manager, "CREATE INDEX session_open ON session (id) WHERE open").await
    }
}
