//! Table `job_spec`: what a job runs. Apart from the job, so that the row that changes stays small.

use kiln_core::{id::JobId, spec::JobSpec};
use sea_orm::entity::prelude::*;

use super::{
    super::{Error, Result},
    error::from_json,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "job_spec")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub job: Uuid,
    pub content: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl TryFrom<Model> for (JobId, JobSpec) {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok((JobId::from_uuid(model.job), from_json("job_spec", "content", &model.content)?))
    }
}
