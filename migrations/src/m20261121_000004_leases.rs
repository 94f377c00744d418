//! Leases, the artifacts of their reports, and which agent has which caches warm.

use sea_orm_migration::prelude::*;

use crate::schema::{
    big_integer, big_integer_null, boolean, index, pk_uuid, table, text, text_null, uuid,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![
            pk_uuid("id"),
            uuid("job"),
            uuid("build"),
            uuid("project"),
            uuid("agent"),
            uuid("session"),
            text("backend"),
            big_integer("attempt"),
            text("phase"),
            boolean("open"),
            boolean("cancelling"),
            big_integer("given_at"),
            big_integer_null("started_at"),
            big_integer_null("ended_at"),
            text_null("outcome"),
            text("log_lengths"),
        ];
        table(manager, "lease", columns, &[], vec![]).await?;
        index(manager, "CREATE INDEX lease_job ON lease (job)").await?;
        index(manager, "CREATE INDEX lease_open ON lease (agent, id) WHERE open").await?;

        let columns = vec![
            uuid("job"),
            text("name"),
            uuid("build"),
            uuid("lease"),
            big_integer("size"),
            text("sha256"),
            big_integer("mode"),
        ];
        table(manager, "artifact", columns, &["job", "name"], vec![]).await?;
        index(manager, "CREATE INDEX artifact_sha256 ON artifact (sha256)").await?;

        let columns = vec![text("key"), uuid("agent"), big_integer("at")];
        table(manager, "affinity", columns, &["key"], vec![]).await
    }
}
