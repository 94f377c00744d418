//! Bearer tokens. Only digests of their secrets.

use sea_orm_migration::prelude::*;

use crate::schema::{
    big_integer, big_integer_null, binary, owned, pk_uuid, table, text, uuid_null,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![
            pk_uuid("id"),
            text("name"),
            text("role"),
            uuid_null("project"),
            binary("secret_sha256"),
            big_integer("created_at"),
            big_integer_null("expires_at"),
            uuid_null("used_by"),
            big_integer_null("used_at"),
        ];
        table(manager, "token", columns, &[], vec![owned("token", "project", "project")]).await
    }
}
