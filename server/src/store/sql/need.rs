//! Table `need`: the edges of a build.

use kiln_core::id::{BuildId, JobId};
use sea_orm::{QueryOrder, entity::prelude::*};

use super::{
    super::{Error, JobRow, Result},
    job, set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "need")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub needed: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub job: Uuid,
    pub build: Uuid,
    pub artifacts: bool,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// (job, needed, place its artifacts)
type Edge = (JobId, JobId, bool);

impl TryFrom<Model> for Edge {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok((JobId::from_uuid(model.job), JobId::from_uuid(model.needed), model.artifacts))
    }
}

pub(super) async fn of(conn: &impl ConnectionTrait, build: BuildId) -> Result<Vec<Edge>> {
    let select = Entity::find()
        .filter(Column::Build.eq(build.uuid()))
        .order_by_asc(Column::Job)
        .order_by_asc(Column::Needed);
    set::rows(conn, select, "read the needs of a build").await
}

/// (needed, dependent)
pub(super) async fn dependents(
    conn: &impl ConnectionTrait,
    needed: &[JobId],
) -> Result<Vec<(JobId, JobRow)>> {
    let ids = needed.iter().map(|id| id.uuid());
    let edges: Vec<Edge> =
        set::among(conn, Entity::find(), Column::Needed, ids, "find dependents").await?;
    let dependents: Vec<JobId> = edges.iter().map(|edge| edge.0).collect();
    let rows = job::by_id(conn, dependents).await?;
    let mut found: Vec<_> = edges
        .into_iter()
        .filter_map(|(job, needed, _)| Some((needed, rows.get(&job)?.clone())))
        .collect();
    found.sort_by_key(|(needed, row)| (*needed, row.job.id));
    Ok(found)
}

/// (job, needed, place its artifacts)
pub(super) async fn needed_by(
    conn: &impl ConnectionTrait,
    jobs: &[JobId],
) -> Result<Vec<(JobId, JobRow, bool)>> {
    let ids = jobs.iter().map(|id| id.uuid());
    let edges: Vec<Edge> =
        set::among(conn, Entity::find(), Column::Job, ids, "find needed jobs").await?;
    let needed: Vec<JobId> = edges.iter().map(|edge| edge.1).collect();
    let rows = job::by_id(conn, needed).await?;
    let mut found: Vec<_> = edges
        .into_iter()
        .filter_map(|(job, needed, artifacts)| Some((job, rows.get(&needed)?.clone(), artifacts)))
        .collect();
    found.sort_by_key(|(job, needed, _)| (*job, needed.index));
    Ok(found)
}
