//! The audit log, and the number of its last record.

use sea_orm_migration::prelude::*;

use crate::schema::{big_integer, boolean, index, table, text, text_null};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![
            big_integer("number"),
            big_integer("at"),
            text("actor_kind"),
            text("actor"),
            text("actor_name"),
            text_null("peer"),
            text("action"),
            text("object"),
            text("object_name"),
            boolean("changed"),
            text("detail"),
        ];
        table(manager, "audit", columns, &["number"], vec![]).await?;
        index(manager, "CREATE INDEX audit_object ON audit (object, number)").await?;
        index(manager, "CREATE INDEX audit_actor_name ON audit (actor_name, number)").await?;
        table(manager, "audit_head", vec![big_integer("last")], &[], vec![]).await?;
        // One row, for ever.
        index(manager, "INSERT INTO audit_head (last) VALUES (0)").await
    }
}
