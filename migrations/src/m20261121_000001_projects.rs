//! Projects, their concurrency groups, classes of constraints, and facts about the store itself.

use sea_orm_migration::prelude::*;

use crate::schema::{big_integer, boolean, owned, pk_uuid, table, text, text_uniq, unique, uuid};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![text("key"), text("value")];
        table(manager, "meta", columns, &["key"], vec![]).await?;

        let columns = vec![
            pk_uuid("id"),
            text_uniq("name"),
            big_integer("weight"),
            big_integer("max_running"),
            boolean("paused"),
            big_integer("running"),
            big_integer("created_at"),
        ];
        table(manager, "project", columns, &[], vec![]).await?;

        let columns = vec![pk_uuid("id"), uuid("project"), text("name"), big_integer("limit")];
        let keys = vec![owned("concurrency_group", "project", "project")];
        table(manager, "concurrency_group", columns, &[], keys).await?;
        let names = unique("concurrency_group_name", "concurrency_group", &["project", "name"]);
        manager.create_index(names).await?;

        // A class is found by the digest of its text: the text may be longer than an index allows.
        let columns = vec![pk_uuid("id"), text_uniq("digest"), text("content")];
        table(manager, "class", columns, &[], vec![]).await
    }
}
