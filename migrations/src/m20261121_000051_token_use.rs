//! When a token was used last, and the secret that a rotation left valid for a while.

use sea_orm_migration::prelude::*;

use crate::schema::{big_integer_null, binary_null};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = [
            big_integer_null("last_used_at"),
            binary_null("old_sha256"),
            big_integer_null("old_until"),
        ];
        // One statement a column: SQLite takes no more.
        for column in columns {
            let table = Table::alter().table("token").add_column(column).take();
            manager.alter_table(table).await?;
        }
        Ok(())
    }
}
