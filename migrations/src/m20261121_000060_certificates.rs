//! The authorities that sign certificates, and the key that each agent's certificate is for.

use sea_orm_migration::prelude::*;

use crate::schema::{big_integer, big_integer_null, binary, binary_null, pk_bigint, table, text};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![
            pk_bigint("generation"),
            binary("certificate"),
            binary_null("bridge"),
            text("key"),
            binary("sealed"),
            big_integer("created_at"),
            big_integer_null("trusted_until"),
        ];
        table(manager, "authority", columns, &[], vec![]).await?;
        // One statement a column: SQLite takes no more.
        for column in [binary_null("public_key_sha256"), big_integer_null("certificate_ends_at")] {
            let table = Table::alter().table("agent").add_column(column).take();
            manager.alter_table(table).await?;
        }
        Ok(())
    }
}
