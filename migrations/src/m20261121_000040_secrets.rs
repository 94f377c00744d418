//! Secrets, encrypted, and which value each lease was given.

use sea_orm_migration::prelude::*;

use crate::schema::{
    big_integer, big_integer_null, binary, index, owned, pk_uuid, table, text, uuid, uuid_null,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![
            pk_uuid("id"),
            uuid("project"),
            uuid_null("build"),
            text("name"),
            big_integer("size"),
            text("key"),
            binary("sealed"),
            big_integer("set_at"),
            text("set_by"),
            big_integer_null("ended_at"),
        ];
        let keys = vec![owned("secret", "project", "project"), owned("secret", "build", "build")];
        table(manager, "secret", columns, &[], keys).await?;
        for sql in [
            "CREATE UNIQUE INDEX secret_of_project ON secret (project, name) WHERE build IS NULL AND ended_at IS NULL",
            "CREATE UNIQUE INDEX secret_of_build ON secret (build, name) WHERE build IS NOT NULL AND ended_at IS NULL",
            "CREATE INDEX secret_ended ON secret (id) WHERE ended_at IS NOT NULL",
        ] {
            index(manager, sql).await?;
        }
        let columns = vec![uuid("lease"), text("name"), uuid("secret")];
        let keys = vec![owned("secret_grant", "secret", "secret")];
        table(manager, "secret_grant", columns, &["lease", "name"], keys).await?;
        index(manager, "CREATE INDEX secret_grant_secret ON secret_grant (secret)").await
    }
}
