//! Table `project`.

use kiln_core::id::ProjectId;
use sea_orm::entity::prelude::*;

use super::{
    super::{Error, ProjectRow, Result},
    error::{failed, taken, unsigned},
    set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "project")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub name: String,
    pub weight: i64,
    pub max_running: i64,
    pub paused: bool,
    pub running: i64,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&ProjectRow> for Model {
    fn from(row: &ProjectRow) -> Self {
        Self {
            id: row.id.uuid(),
            name: row.name.clone(),
            weight: row.weight.into(),
            max_running: row.max_running.into(),
            paused: row.paused,
            running: row.running.into(),
            created_at: row.created_at,
        }
    }
}

impl TryFrom<Model> for ProjectRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok(Self {
            id: ProjectId::from_uuid(model.id),
            name: model.name,
            weight: unsigned("project", "weight", model.weight)?,
            max_running: unsigned("project", "max_running", model.max_running)?,
            paused: model.paused,
            running: unsigned("project", "running", model.running)?,
            created_at: model.created_at,
        })
    }
}

pub(super) async fn insert(conn: &impl ConnectionTrait, row: &ProjectRow) -> Result<()> {
    let models = [Model::from(row)];
    set::insert(conn, &models, "").await.map_err(taken("insert a project", "project", &row.name))
}

pub(super) async fn save(conn: &impl ConnectionTrait, rows: &[ProjectRow]) -> Result<()> {
    let models: Vec<_> = rows.iter().map(Model::from).collect();
    let columns =
        [Column::Name, Column::Weight, Column::MaxRunning, Column::Paused, Column::Running];
    set::update(conn, &models, Column::Id, &columns).await.map_err(failed("save projects"))
}
