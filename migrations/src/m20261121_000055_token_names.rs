//! No two tokens of one name, whichever server makes them: three that start at once make one administrator.

use sea_orm_migration::prelude::*;

use crate::schema::unique;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_index(unique("token_name", "token", &["name"])).await
    }
}
