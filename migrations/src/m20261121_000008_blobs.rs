//! Blobs, what pins them, and which jobs have one as their source.

use sea_orm_migration::prelude::*;

use crate::schema::{big_integer, big_integer_null, boolean, index, table, text, uuid_null};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns =
            vec![text("sha256"), big_integer("size"), boolean("leaving"), big_integer("stored_at")];
        table(manager, "blob", columns, &["sha256"], vec![]).await?;
        index(manager, "CREATE INDEX blob_leaving ON blob (sha256) WHERE leaving").await?;

        let columns = vec![
            text("sha256"),
            text("holder"),
            uuid_null("lease"),
            big_integer("size"),
            big_integer_null("expires_at"),
        ];
        table(manager, "blob_pin", columns, &["sha256", "holder"], vec![]).await?;
        index(manager, "CREATE INDEX blob_pin_lease ON blob_pin (lease)").await?;

        index(manager, "ALTER TABLE job_spec ADD COLUMN source TEXT").await?;
        index(manager, "CREATE INDEX job_spec_source ON job_spec (source) WHERE source IS NOT NULL")
            .await
    }
}
