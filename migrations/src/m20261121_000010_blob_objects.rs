//! Objects of blobs by name: each upload writes one of its own, which is announced before it is written.

use sea_orm_migration::prelude::*;

use crate::schema::{big_integer, boolean, index, table, text};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![text("name"), big_integer("announced_at"), boolean("doomed")];
        table(manager, "blob_object", columns, &["name"], vec![]).await?;
        index(manager, "ALTER TABLE blob ADD COLUMN object TEXT NOT NULL DEFAULT ''").await?;
        // Objects of before have the name of their digest. What was leaving then is removed as it is now.
        let named = "UPDATE blob SET object = substr(sha256, 1, 2) || '/' || sha256";
        index(manager, named).await?;
        let doomed = "INSERT INTO blob_object (name, announced_at, doomed) SELECT object, 0, true FROM blob WHERE leaving";
        index(manager, doomed).await?;
        index(manager, "DELETE FROM blob WHERE leaving").await
    }
}
