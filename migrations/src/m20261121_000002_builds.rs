//! Builds with the counts of their jobs, and their events.

use sea_orm_migration::prelude::*;

use crate::schema::{
    big_integer, big_integer_null, index, integer, owned, pk_uuid, table, text, text_null, unique,
    uuid,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![
            pk_uuid("id"),
            uuid("project"),
            text("title"),
            text_null("key"),
            text("digest"),
            integer("priority"),
            text("annotations"),
            text("submitter"),
            big_integer("blocked"),
            big_integer("queued"),
            big_integer("leased"),
            big_integer("running"),
            big_integer("succeeded"),
            big_integer("failed"),
            big_integer("cancelled"),
            big_integer("tolerated"),
            text("state"),
            big_integer("last_event"),
            big_integer("created_at"),
            big_integer_null("finished_at"),
        ];
        table(manager, "build", columns, &[], vec![owned("build", "project", "project")]).await?;
        manager.create_index(unique("build_key", "build", &["project", "key"])).await?;
        index(manager, "CREATE INDEX build_created ON build (created_at, id)").await?;
        index(manager, "CREATE INDEX build_project ON build (project, created_at, id)").await?;
        index(manager, "CREATE INDEX build_state ON build (state, created_at, id)").await?;

        // No foreign key: it would read the build's row for each event that is appended.
        let columns = vec![uuid("build"), big_integer("number"), big_integer("at"), text("change")];
        table(manager, "event", columns, &["build", "number"], vec![]).await
    }
}
