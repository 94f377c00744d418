//! Table `lease`: one attempt of a job on one agent.

use std::collections::BTreeMap;

use kiln_core::{
    id::{AgentId, BuildId, JobId, LeaseId, ProjectId, SessionId},
    session::LeasePhase,
};
use sea_orm::{QueryOrder, QuerySelect, entity::prelude::*};

use super::{
    super::{Busy, Error, LeaseRow, Result},
    error::{corrupt, failed, from_json, to_json, unsigned},
    set,
};

const TABLE: &str = "lease";

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "lease")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub job: Uuid,
    pub build: Uuid,
    pub project: Uuid,
    pub agent: Uuid,
    pub session: Uuid,
    pub backend: String,
    pub attempt: i64,
    pub phase: String,
    /// Its phase is one that holds the job.
    pub open: bool,
    pub cancelling: bool,
    pub given_at: i64,
    pub started_at: Option<i64>,
    pub ended_at: Option<i64>,
    pub outcome: Option<String>,
    pub log_lengths: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

const CHANGING: [Column; 8] = [
    Column::Session,
    Column::Phase,
    Column::Open,
    Column::Cancelling,
    Column::StartedAt,
    Column::EndedAt,
    Column::Outcome,
    Column::LogLengths,
];

impl From<&LeaseRow> for Model {
    fn from(row: &LeaseRow) -> Self {
        Self {
            id: row.id.uuid(),
            job: row.job.uuid(),
            build: row.build.uuid(),
            project: row.project.uuid(),
            agent: row.agent.uuid(),
            session: row.session.uuid(),
            backend: row.backend.clone(),
            attempt: row.attempt.into(),
            phase: row.phase.as_str().to_owned(),
            open: row.phase.is_open(),
            cancelling: row.cancelling,
            given_at: row.given_at,
            started_at: row.started_at,
            ended_at: row.ended_at,
            outcome: row.outcome.as_ref().map(to_json),
            log_lengths: to_json(&row.log_lengths),
        }
    }
}

impl TryFrom<Model> for LeaseRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        let phase = LeasePhase::parse(&model.phase);
        let outcome = model.outcome.as_deref().map(|text| from_json(TABLE, "outcome", text));
        Ok(Self {
            id: LeaseId::from_uuid(model.id),
            job: JobId::from_uuid(model.job),
            build: BuildId::from_uuid(model.build),
            project: ProjectId::from_uuid(model.project),
            agent: AgentId::from_uuid(model.agent),
            session: SessionId::from_uuid(model.session),
            backend: model.backend,
            attempt: unsigned(TABLE, "attempt", model.attempt)?,
            phase: phase.ok_or_else(|| corrupt(TABLE, "phase", &model.phase))?,
            cancelling: model.cancelling,
            given_at: model.given_at,
            started_at: model.started_at,
            ended_at: model.ended_at,
            outcome: outcome.transpose()?,
            log_lengths: from_json(TABLE, "log_lengths", &model.log_lengths)?,
        })
    }
}

pub(super) async fn insert(conn: &impl ConnectionTrait, rows: &[LeaseRow]) -> Result<()> {
    let models: Vec<_> = rows.iter().map(Model::from).collect();
    set::insert(conn, &models, "").await.map_err(failed("insert leases"))
}

pub(super) async fn save(conn: &impl ConnectionTrait, rows: &[LeaseRow]) -> Result<()> {
    let models: Vec<_> = rows.iter().map(Model::from).collect();
    set::update(conn, &models, Column::Id, &CHANGING).await.map_err(failed("save leases"))
}

pub(super) async fn open(
    conn: &impl ConnectionTrait,
    agents: Option<&[AgentId]>,
) -> Result<Vec<LeaseRow>> {
    let action = "read open leases";
    let select = Entity::find().filter(Expr::col((Entity, Column::Open)));
    let mut rows: Vec<LeaseRow> = match agents {
        None => set::rows(conn, select, action).await?,
        Some(agents) => {
            let agents = agents.iter().map(|agent| agent.uuid());
            set::among(conn, select, Column::Agent, agents, action).await?
        }
    };
    rows.sort_unstable_by_key(|row| row.id);
    Ok(rows)
}

/// Counts by agent and backend.
pub(super) async fn busy(
    conn: &impl ConnectionTrait,
    agents: &[AgentId],
) -> Result<BTreeMap<AgentId, Busy>> {
    let action = "count open leases";
    let mut agents: Vec<Uuid> = agents.iter().map(|agent| agent.uuid()).collect();
    agents.sort_unstable();
    agents.dedup();
    let mut held: BTreeMap<AgentId, Busy> = BTreeMap::new();
    for piece in agents.chunks(set::MOST) {
        let counts: Vec<(Uuid, String, i64)> = Entity::find()
            .select_only()
            .columns([Column::Agent, Column::Backend])
            .column_as(Column::Id.count(), "leases")
            .filter(Expr::col((Entity, Column::Open)))
            .filter(Column::Agent.is_in(set::padded(piece)))
            .group_by(Column::Agent)
            .group_by(Column::Backend)
            .into_tuple()
            .all(conn)
            .await
            .map_err(failed(action))?;
        for (agent, backend, count) in counts {
            let count = unsigned(TABLE, "open", count)?;
            held.entry(AgentId::from_uuid(agent)).or_default().insert(backend, count);
        }
    }
    Ok(held)
}

pub(super) async fn of_job(conn: &impl ConnectionTrait, job: JobId) -> Result<Vec<LeaseRow>> {
    let select = Entity::find().filter(Column::Job.eq(job.uuid())).order_by_asc(Column::Id);
    set::rows(conn, select, "read the leases of a job").await
}
