//! Table `job`: the small row that transitions change.

use std::collections::BTreeMap;

use kiln_core::{
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId},
    job::{Job, State, Status},
};
use sea_orm::{QueryOrder, QuerySelect, entity::prelude::*};

use super::{
    super::{Error, JobRow, NewJob, Result},
    error::{corrupt, failed, from_json, to_json, unsigned},
    job_spec, need, set,
};

const TABLE: &str = "job";

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "job")]
#[expect(clippy::struct_excessive_bools, reason = "columns")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub build: Uuid,
    pub project: Uuid,
    pub index: i64,
    pub name: String,
    pub backend: String,
    pub class: Uuid,
    pub group: Option<Uuid>,
    pub priority: i32,
    pub allow_failure: bool,
    pub affinity: String,
    pub queue_timeout_ms: i64,
    pub retry: String,
    pub status: String,
    /// Set while it is queued: partial indexes know the queue by it.
    pub not_before: Option<i64>,
    pub cancelling: bool,
    pub outcome: Option<String>,
    pub round: i64,
    pub attempt: i64,
    pub attempts: i64,
    pub returns: i64,
    pub lease: Option<Uuid>,
    pub answered: Option<Uuid>,
    pub queued_at: i64,
    pub open_needs: i64,
    pub claimable: bool,
    /// Queued, leased or running.
    pub live: bool,
    pub agent: Option<Uuid>,
    pub returned: Option<String>,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
    pub version: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// What a transition changes.
const CHANGING: [Column; 19] = [
    Column::Status,
    Column::NotBefore,
    Column::Cancelling,
    Column::Outcome,
    Column::Round,
    Column::Attempt,
    Column::Attempts,
    Column::Returns,
    Column::Lease,
    Column::Answered,
    Column::QueuedAt,
    Column::OpenNeeds,
    Column::Claimable,
    Column::Live,
    Column::Agent,
    Column::Returned,
    Column::StartedAt,
    Column::FinishedAt,
    Column::Version,
];

impl From<&JobRow> for Model {
    fn from(row: &JobRow) -> Self {
        let job = &row.job;
        let status = job.status();
        Self {
            id: job.id.uuid(),
            build: job.build.uuid(),
            project: row.project.uuid(),
            index: row.index.into(),
            name: row.name.clone(),
            backend: row.backend.clone(),
            class: row.class.uuid(),
            group: row.group,
            priority: row.priority,
            allow_failure: row.allow_failure,
            affinity: row.affinity.clone(),
            queue_timeout_ms: job.queue_timeout_ms,
            retry: to_json(&job.retry),
            status: status.as_str().to_owned(),
            not_before: match job.state {
                State::Queued { not_before } => Some(not_before),
                _ => None,
            },
            cancelling: job.cancelling(),
            outcome: match &job.state {
                State::Done(outcome) => Some(to_json(outcome)),
                _ => None,
            },
            round: job.round.into(),
            attempt: job.attempt.into(),
            attempts: job.attempts.into(),
            returns: job.returns.into(),
            lease: job.open_lease().or(job.lease).map(LeaseId::uuid),
            answered: job.answered.map(LeaseId::uuid),
            queued_at: job.queued_at,
            open_needs: row.open_needs.into(),
            claimable: row.claimable,
            live: matches!(status, Status::Queued | Status::Leased | Status::Running),
            agent: row.agent.map(AgentId::uuid),
            returned: row.returned.clone(),
            started_at: row.started_at,
            finished_at: row.finished_at,
            version: row.version,
        }
    }
}

fn state(model: &Model) -> Result<State> {
    let status = Status::parse(&model.status);
    let lease = || {
        let lease = model.lease.map(LeaseId::from_uuid);
        lease.ok_or_else(|| corrupt(TABLE, "lease", "nothing, though the job is leased"))
    };
    let cancelling = model.cancelling;
    Ok(match status.ok_or_else(|| corrupt(TABLE, "status", &model.status))? {
        Status::Blocked => State::Blocked,
        Status::Queued => State::Queued { not_before: model.not_before.unwrap_or_default() },
        Status::Leased => State::Leased { lease: lease()?, cancelling },
        Status::Running => State::Running { lease: lease()?, cancelling },
        Status::Succeeded | Status::Failed | Status::Cancelled => {
            let outcome = model.outcome.as_deref().unwrap_or_default();
            State::Done(from_json(TABLE, "outcome", outcome)?)
        }
    })
}

impl TryFrom<Model> for JobRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        let job = Job {
            id: JobId::from_uuid(model.id),
            build: BuildId::from_uuid(model.build),
            state: state(&model)?,
            round: unsigned(TABLE, "round", model.round)?,
            attempt: unsigned(TABLE, "attempt", model.attempt)?,
            attempts: unsigned(TABLE, "attempts", model.attempts)?,
            returns: unsigned(TABLE, "returns", model.returns)?,
            lease: model.lease.map(LeaseId::from_uuid),
            answered: model.answered.map(LeaseId::from_uuid),
            queued_at: model.queued_at,
            queue_timeout_ms: model.queue_timeout_ms,
            retry: from_json(TABLE, "retry", &model.retry)?,
        };
        Ok(Self {
            job,
            project: ProjectId::from_uuid(model.project),
            index: unsigned(TABLE, "index", model.index)?,
            name: model.name,
            backend: model.backend,
            class: ClassId::from_uuid(model.class),
            group: model.group,
            priority: model.priority,
            allow_failure: model.allow_failure,
            open_needs: unsigned(TABLE, "open_needs", model.open_needs)?,
            claimable: model.claimable,
            affinity: model.affinity,
            agent: model.agent.map(AgentId::from_uuid),
            returned: model.returned,
            started_at: model.started_at,
            finished_at: model.finished_at,
            version: model.version,
        })
    }
}

/// Jobs with their specifications and needs.
pub(super) async fn insert(conn: &impl ConnectionTrait, jobs: &[NewJob]) -> Result<()> {
    for piece in jobs.chunks(set::MOST) {
        let models: Vec<_> = piece.iter().map(|new| Model::from(&new.row)).collect();
        set::insert(conn, &models, "").await.map_err(failed("insert jobs"))?;
        let specs: Vec<_> =
            piece.iter().map(|new| job_spec::Model::new(new.row.job.id, &new.spec)).collect();
        set::insert(conn, &specs, "").await.map_err(failed("insert specifications"))?;
        let needs: Vec<_> = piece.iter().flat_map(needs).collect();
        set::insert(conn, &needs, "").await.map_err(failed("insert needs"))?;
    }
    Ok(())
}

fn needs(new: &NewJob) -> impl Iterator<Item = need::Model> {
    new.needs.iter().map(|&(needed, artifacts)| need::Model {
        needed: needed.uuid(),
        job: new.row.job.id.uuid(),
        build: new.row.job.build.uuid(),
        artifacts,
    })
}

/// Saves rows of the version that is stored and raises it; the ids of the others.
pub(super) async fn save(conn: &impl ConnectionTrait, rows: &[JobRow]) -> Result<Vec<JobId>> {
    let raised = |row| {
        let model = Model::from(row);
        Model { version: model.version + 1, ..model }
    };
    let models: Vec<_> = rows.iter().map(raised).collect();
    let mut saved = set::update_version(conn, &models, Column::Id, &CHANGING, Column::Version)
        .await
        .map_err(failed("save jobs"))?;
    if saved.len() == rows.len() {
        return Ok(vec![]);
    }
    saved.sort_unstable();
    let ids = rows.iter().map(|row| row.job.id);
    Ok(ids.filter(|id| saved.binary_search(&id.uuid()).is_err()).collect())
}

pub(super) async fn list(
    conn: &impl ConnectionTrait,
    ids: impl IntoIterator<Item = JobId>,
) -> Result<Vec<JobRow>> {
    let ids = ids.into_iter().map(JobId::uuid);
    set::among(conn, Entity::find(), Column::Id, ids, "read jobs").await
}

pub(super) async fn by_id(
    conn: &impl ConnectionTrait,
    ids: Vec<JobId>,
) -> Result<BTreeMap<JobId, JobRow>> {
    let rows = list(conn, ids).await?;
    Ok(rows.into_iter().map(|row| (row.job.id, row)).collect())
}

pub(super) async fn of(conn: &impl ConnectionTrait, build: BuildId) -> Result<Vec<JobRow>> {
    let select = Entity::find().filter(Column::Build.eq(build.uuid())).order_by_asc(Column::Index);
    set::rows(conn, select, "read the jobs of a build").await
}

/// Members of a group that are queued, leased or running, by id.
pub(super) async fn members(conn: &impl ConnectionTrait, group: Uuid) -> Result<Vec<JobRow>> {
    set::rows(conn, live(group), "read the members of a group").await
}

/// Open members, and the first `queued` that wait.
pub(super) async fn first_members(
    conn: &impl ConnectionTrait,
    group: Uuid,
    queued: u32,
) -> Result<Vec<JobRow>> {
    let action = "read the members of a group";
    let open = live(group).filter(Column::NotBefore.is_null());
    let waiting = live(group).filter(Column::NotBefore.is_not_null()).limit(u64::from(queued));
    let mut rows: Vec<JobRow> = set::rows(conn, open, action).await?;
    rows.extend(set::rows::<JobRow, Entity>(conn, waiting, action).await?);
    rows.sort_by_key(|row| row.job.id);
    Ok(rows)
}

fn live(group: Uuid) -> Select<Entity> {
    Entity::find()
        .filter(Column::Group.eq(group))
        .filter(Expr::col((Entity, Column::Live)))
        .order_by_asc(Column::Id)
}
