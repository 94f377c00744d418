//! Table `event`: what changed, numbered per build.

use kiln_core::{event::Record, id::BuildId};
use sea_orm::{QueryOrder, QuerySelect, SqlErr, entity::prelude::*};

use super::{
    super::{Error, Result},
    error::{failed, from_json, to_json},
    set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "event")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub build: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub number: i64,
    pub at: i64,
    pub change: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&Record> for Model {
    fn from(record: &Record) -> Self {
        Self {
            build: record.build.uuid(),
            number: record.number,
            at: record.at,
            change: to_json(&record.change),
        }
    }
}

impl TryFrom<Model> for Record {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok(Self {
            build: BuildId::from_uuid(model.build),
            number: model.number,
            at: model.at,
            change: from_json("event", "change", &model.change)?,
        })
    }
}

pub(super) async fn append(conn: &impl ConnectionTrait, events: &[Record]) -> Result<()> {
    let models: Vec<_> = events.iter().map(Model::from).collect();
    set::insert(conn, &models, "").await.map_err(|error| match error.sql_err() {
        Some(SqlErr::UniqueConstraintViolation(_)) => Error::Conflict,
        _ => failed("append events")(error),
    })
}

pub(super) async fn after(
    conn: &impl ConnectionTrait,
    build: BuildId,
    after: i64,
    limit: u32,
) -> Result<Vec<Record>> {
    let select = Entity::find()
        .filter(Column::Build.eq(build.uuid()))
        .filter(Column::Number.gt(after))
        .order_by_asc(Column::Number)
        .limit(u64::from(limit));
    set::rows(conn, select, "read events").await
}
