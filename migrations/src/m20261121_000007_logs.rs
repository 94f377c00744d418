//! Logs: what of each stream is durable, in which segments, and the stages of a lease.

use sea_orm_migration::{prelude::*, schema::binary_null};

use crate::schema::{big_integer, boolean, index, table, text, uuid};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![
            uuid("lease"),
            text("stream"),
            uuid("job"),
            uuid("build"),
            big_integer("size"),
            big_integer("crc"),
            big_integer("tail"),
            text("state"),
            boolean("packed"),
            big_integer("created_at"),
            big_integer("updated_at"),
        ];
        table(manager, "log", columns, &["lease", "stream"], vec![]).await?;
        index(manager, "CREATE INDEX log_unpacked ON log (lease, stream) WHERE NOT packed").await?;
        index(manager, "CREATE INDEX log_closed ON log (created_at) WHERE packed").await?;

        let columns = vec![
            uuid("lease"),
            text("stream"),
            big_integer("start"),
            big_integer("length"),
            big_integer("crc"),
            binary_null("data"),
        ];
        table(manager, "log_segment", columns, &["lease", "stream", "start"], vec![]).await?;

        let columns = vec![
            uuid("lease"),
            big_integer("number"),
            text("name"),
            big_integer("at"),
            big_integer("position"),
        ];
        table(manager, "log_stage", columns, &["lease", "number"], vec![]).await
    }
}
