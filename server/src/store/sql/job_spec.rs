//! Table `job_spec`: what a job runs. Apart from the job, so that the row that changes stays small.

use kiln_core::{
    id::JobId,
    spec::{JobSpec, Source},
};
use sea_orm::entity::prelude::*;

use super::{
    super::{Error, Result},
    error::{from_json, to_json},
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "job_spec")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub job: Uuid,
    pub content: String,
    /// Digest of the archive that it is made of: holds the blob.
    pub source: Option<String>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    pub(super) fn new(job: JobId, spec: &JobSpec) -> Self {
        let source = match &spec.source {
            Some(Source::Archive { sha256, .. }) => Some(sha256.clone()),
            _ => None,
        };
        Self { job: job.uuid(), content: to_json(spec), source }
    }
}

impl TryFrom<Model> for (JobId, JobSpec) {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok((JobId::from_uuid(model.job), from_json("job_spec", "content", &model.content)?))
    }
}
