//! Jobs (the small row that changes), their specifications, and what they need.

use sea_orm_migration::prelude::*;

use crate::schema::{
    big_integer, big_integer_null, boolean, index, integer, owned, pk_uuid, table, text, text_null,
    unique, uuid, uuid_null,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        table(manager, "job", columns(), &[], vec![owned("job", "build", "build")]).await?;
        manager.create_index(unique("job_build", "job", &["build", "index"])).await?;
        // No index names `status`, and what they name does not change when a lease starts, so that Postgres can keep
        // the new version of the row on its page without touching an index.
        let claim = "CREATE INDEX job_claim ON job (class, project, priority DESC, queued_at, id, not_before) \
             WHERE claimable";
        index(manager, claim).await?;
        let overdue = "CREATE INDEX job_overdue ON job ((queued_at + queue_timeout_ms), id) \
             WHERE not_before IS NOT NULL";
        index(manager, overdue).await?;
        let backoff = "CREATE INDEX job_backoff ON job (not_before) \
             WHERE claimable AND not_before > 0";
        index(manager, backoff).await?;
        let group = "CREATE INDEX job_group ON job (\"group\", id) WHERE live";
        index(manager, group).await?;

        let columns = vec![pk_uuid("job"), text("content")];
        table(manager, "job_spec", columns, &[], vec![owned("job_spec", "job", "job")]).await?;

        let columns = vec![uuid("needed"), uuid("job"), uuid("build"), boolean("artifacts")];
        let keys = vec![owned("need", "job", "job")];
        table(manager, "need", columns, &["needed", "job"], keys).await?;
        index(manager, "CREATE INDEX need_build ON need (build, job)").await?;
        index(manager, "CREATE INDEX need_job ON need (job)").await
    }
}

fn columns() -> Vec<ColumnDef> {
    vec![
        pk_uuid("id"),
        uuid("build"),
        uuid("project"),
        big_integer("index"),
        text("name"),
        text("backend"),
        uuid("class"),
        uuid_null("group"),
        integer("priority"),
        boolean("allow_failure"),
        text("affinity"),
        big_integer("queue_timeout_ms"),
        text("retry"),
        // What transitions change.
        text("status"),
        big_integer_null("not_before"),
        boolean("cancelling"),
        text_null("outcome"),
        big_integer("round"),
        big_integer("attempt"),
        big_integer("attempts"),
        big_integer("returns"),
        uuid_null("lease"),
        uuid_null("answered"),
        big_integer("queued_at"),
        big_integer("open_needs"),
        boolean("claimable"),
        boolean("live"),
        uuid_null("agent"),
        text_null("returned"),
        big_integer_null("started_at"),
        big_integer_null("finished_at"),
        big_integer("version"),
    ]
}
