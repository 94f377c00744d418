//! Table `artifact`: what the last report of a job named.

use kiln_core::{
    id::{BuildId, JobId, LeaseId},
    session::Artifact,
};
use sea_orm::{QueryOrder, entity::prelude::*};

use super::{
    super::{ArtifactRow, Error, Result},
    error::{failed, unsigned},
    set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "artifact")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub job: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub build: Uuid,
    pub lease: Uuid,
    pub size: i64,
    pub sha256: String,
    pub mode: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&ArtifactRow> for Model {
    fn from(row: &ArtifactRow) -> Self {
        Self {
            job: row.job.uuid(),
            name: row.artifact.name.clone(),
            build: row.build.uuid(),
            lease: row.lease.uuid(),
            size: i64::try_from(row.artifact.size).unwrap_or(i64::MAX),
            sha256: row.artifact.sha256.clone(),
            mode: row.artifact.mode.into(),
        }
    }
}

impl TryFrom<Model> for ArtifactRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok(Self {
            job: JobId::from_uuid(model.job),
            build: BuildId::from_uuid(model.build),
            lease: LeaseId::from_uuid(model.lease),
            artifact: Artifact {
                name: model.name,
                size: unsigned("artifact", "size", model.size)?,
                sha256: model.sha256,
                mode: unsigned("artifact", "mode", model.mode)?,
            },
        })
    }
}

/// Replaces those of the jobs.
pub(super) async fn put(
    conn: &impl ConnectionTrait,
    jobs: &[JobId],
    rows: &[ArtifactRow],
) -> Result<()> {
    let ids: Vec<Uuid> = jobs.iter().map(|job| job.uuid()).collect();
    for piece in ids.chunks(set::MOST) {
        Entity::delete_many()
            .filter(Column::Job.is_in(set::padded(piece)))
            .exec(conn)
            .await
            .map_err(failed("replace artifacts"))?;
    }
    let models: Vec<_> = rows.iter().map(Model::from).collect();
    set::insert(conn, &models, "").await.map_err(failed("insert artifacts"))
}

pub(super) async fn of(conn: &impl ConnectionTrait, jobs: &[JobId]) -> Result<Vec<ArtifactRow>> {
    let select = Entity::find().order_by_asc(Column::Job).order_by_asc(Column::Name);
    let ids = jobs.iter().map(|job| job.uuid());
    set::among(conn, select, Column::Job, ids, "read artifacts").await
}
