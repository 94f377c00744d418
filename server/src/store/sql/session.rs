//! Table `session`: one stream of an agent.

use kiln_core::{
    Millis,
    agent::Load,
    id::{AgentId, SessionId},
};
use sea_orm::{
    QueryOrder, QuerySelect, Statement, UpdateMany, entity::prelude::*, sea_query::LockType,
};

use super::{
    super::{Error, Result, SessionRow},
    error::{failed, to_json},
    set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "session")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub agent: Uuid,
    pub instance: String,
    pub epoch: i64,
    pub beat: i64,
    pub open: bool,
    pub opened_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&SessionRow> for Model {
    fn from(row: &SessionRow) -> Self {
        Self {
            id: row.id.uuid(),
            agent: row.agent.uuid(),
            instance: row.instance.clone(),
            epoch: row.epoch,
            beat: row.beat,
            open: row.open,
            opened_at: row.opened_at,
        }
    }
}

impl TryFrom<Model> for SessionRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok(Self {
            id: SessionId::from_uuid(model.id),
            agent: AgentId::from_uuid(model.agent),
            instance: model.instance,
            epoch: model.epoch,
            beat: model.beat,
            open: model.open,
            opened_at: model.opened_at,
        })
    }
}

pub(super) async fn insert(conn: &impl ConnectionTrait, rows: &[SessionRow]) -> Result<()> {
    let models: Vec<_> = rows.iter().map(Model::from).collect();
    set::insert(conn, &models, "").await.map_err(failed("insert sessions"))
}

fn open() -> Select<Entity> {
    Entity::find().filter(Expr::col((Entity, Column::Open)))
}

pub(super) async fn all_open(conn: &impl ConnectionTrait) -> Result<Vec<SessionRow>> {
    set::rows(conn, open().order_by_asc(Column::Id), "read open sessions").await
}

pub(super) async fn lock_open_of(
    conn: &impl ConnectionTrait,
    agents: &[AgentId],
) -> Result<Vec<SessionRow>> {
    let select = open().lock(LockType::NoKeyUpdate);
    let agents = agents.iter().map(|agent| agent.uuid());
    set::among(conn, select, Column::Agent, agents, "lock the sessions of agents").await
}

fn closing() -> UpdateMany<Entity> {
    let open = Expr::col(Column::Open);
    Entity::update_many().col_expr(Column::Open, Expr::value(false)).filter(open)
}

pub(super) async fn close(conn: &impl ConnectionTrait, ids: &[SessionId]) -> Result<()> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
    for piece in ids.chunks(set::MOST) {
        let update = closing().filter(Column::Id.is_in(set::padded(piece)));
        update.exec(conn).await.map_err(failed("close sessions"))?;
    }
    Ok(())
}

pub(super) async fn close_silent(
    conn: &impl ConnectionTrait,
    id: SessionId,
    observed: i64,
) -> Result<bool> {
    let update = closing().filter(Column::Id.eq(id.uuid())).filter(Column::Beat.eq(observed));
    let closed = update.exec(conn).await.map_err(failed("close a silent session"))?;
    Ok(closed.rows_affected > 0)
}

/// Raises the beat of those that are open: (session, agent).
pub(super) async fn beat(
    conn: &impl ConnectionTrait,
    ids: &[SessionId],
) -> Result<Vec<(SessionId, AgentId)>> {
    let action = "raise the beat of sessions";
    let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
    let mut raised = vec![];
    for piece in ids.chunks(set::MOST) {
        let piece = set::padded(piece);
        let backend = conn.get_database_backend();
        let mut text = String::from(
            "UPDATE \"session\" SET \"beat\"=\"beat\"+1 WHERE \"open\" AND \"id\" IN ",
        );
        set::push_values(&mut text, backend, 1, piece.len());
        text.push_str(" RETURNING \"id\",\"agent\"");
        let values = piece.into_iter().map(Value::from);
        let statement = Statement::from_sql_and_values(backend, text, values);
        for row in conn.query_all_raw(statement).await.map_err(failed(action))? {
            let id = row.try_get_by_index(0).map_err(failed(action))?;
            let agent = row.try_get_by_index(1).map_err(failed(action))?;
            raised.push((SessionId::from_uuid(id), AgentId::from_uuid(agent)));
        }
    }
    Ok(raised)
}

/// When an agent was last heard of, and how it fares.
pub(super) async fn save_loads(
    conn: &impl ConnectionTrait,
    loads: &[(AgentId, Load)],
    at: Millis,
) -> Result<()> {
    let action = "save the load of agents";
    for piece in loads.chunks(set::MOST) {
        let piece = set::padded(piece);
        let mut text = String::from(
            "UPDATE \"agent\" SET \"load\"=v.column2,\"seen_at\"=v.column3 FROM (VALUES ",
        );
        let backend = conn.get_database_backend();
        set::push_values(&mut text, backend, piece.len(), 3);
        text.push_str(") AS v WHERE \"agent\".\"id\"=v.column1");
        let values = piece.iter().flat_map(|(agent, load)| {
            [Value::from(agent.uuid()), Value::from(to_json(load)), Value::from(at)]
        });
        let statement = Statement::from_sql_and_values(backend, text, values);
        conn.execute_raw(statement).await.map_err(failed(action))?;
    }
    Ok(())
}
