//! Short forms of what the migrations say most.

use sea_orm_migration::{
    prelude::{ColumnDef, DbErr, ForeignKey, ForeignKeyAction, Index, SchemaManager, Table},
    sea_orm::ConnectionTrait,
    sea_query::{ForeignKeyCreateStatement, IndexCreateStatement},
};

pub(crate) use sea_orm_migration::schema::{
    big_integer, big_integer_null, binary, binary_null, boolean, integer, pk_uuid, text, text_null,
    text_uniq, uuid, uuid_null,
};

pub(crate) type Result = std::result::Result<(), DbErr>;

/// A number that names a row, chosen by us.
pub(crate) fn pk_bigint(name: &'static str) -> ColumnDef {
    big_integer(name).primary_key().take()
}

/// A table of these columns, with keys to other tables.
pub(crate) async fn table(
    manager: &SchemaManager<'_>,
    name: &'static str,
    columns: Vec<ColumnDef>,
    primary: &[&'static str],
    mut keys: Vec<ForeignKeyCreateStatement>,
) -> Result {
    let mut table = Table::create();
    table.table(name);
    for column in columns {
        table.col(column);
    }
    if !primary.is_empty() {
        let mut index = Index::create();
        for column in primary {
            index.col(*column);
        }
        table.primary_key(&mut index);
    }
    for key in &mut keys {
        table.foreign_key(key);
    }
    manager.create_table(table).await
}

/// A column that names a row of another table and goes with it.
pub(crate) fn owned(
    table: &'static str,
    column: &'static str,
    to: &'static str,
) -> ForeignKeyCreateStatement {
    let mut key = ForeignKey::create();
    key.from(table, column).to(to, "id").on_delete(ForeignKeyAction::Cascade);
    key
}

/// An index whose order and condition the builder can't say: plain text that both engines read.
pub(crate) async fn index(manager: &SchemaManager<'_>, sql: &'static str) -> Result {
    manager.get_connection().execute_unprepared(sql).await.map(drop)
}

pub(crate) fn unique(
    name: &'static str,
    table: &'static str,
    columns: &[&'static str],
) -> IndexCreateStatement {
    let mut index = Index::create();
    index.name(name).table(table).unique();
    for column in columns {
        index.col(*column);
    }
    index
}
