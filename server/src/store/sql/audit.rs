//! Tables `audit` and `audit_head`: who did what, numbered without gaps.

use sea_orm::{Condition, QueryOrder, QuerySelect, Statement, entity::prelude::*};

use super::{
    super::{ActorKind, AuditAct, AuditFilter, AuditRow, Error, Result},
    error::{corrupt, failed},
    set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "audit")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub number: i64,
    pub at: i64,
    pub actor_kind: String,
    pub actor: String,
    pub actor_name: String,
    pub peer: Option<String>,
    pub action: String,
    pub object: String,
    pub object_name: String,
    pub changed: bool,
    pub detail: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&AuditRow> for Model {
    fn from(row: &AuditRow) -> Self {
        Self {
            number: row.number,
            at: row.at,
            actor_kind: row.actor_kind.as_str().to_owned(),
            actor: row.actor.clone(),
            actor_name: row.actor_name.clone(),
            peer: row.peer.clone(),
            action: row.act.action.clone().into_owned(),
            object: row.act.object.clone(),
            object_name: row.act.object_name.clone(),
            changed: row.act.changed,
            detail: row.act.detail.clone(),
        }
    }
}

impl TryFrom<Model> for AuditRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        let kind = ActorKind::parse(&model.actor_kind);
        Ok(Self {
            number: model.number,
            at: model.at,
            actor_kind: kind.ok_or_else(|| corrupt("audit", "actor_kind", &model.actor_kind))?,
            actor: model.actor,
            actor_name: model.actor_name,
            peer: model.peer,
            act: AuditAct {
                action: model.action.into(),
                object: model.object,
                object_name: model.object_name,
                changed: model.changed,
                detail: model.detail,
            },
        })
    }
}

/// The head is locked until the transaction ends: numbers have no gap, and become visible in their order.
pub(super) async fn append(conn: &impl ConnectionTrait, row: &AuditRow) -> Result<i64> {
    let action = "append to the audit log";
    let text = "UPDATE \"audit_head\" SET \"last\" = \"last\" + 1 RETURNING \"last\"";
    let next = Statement::from_string(conn.get_database_backend(), text);
    let next = conn.query_one_raw(next).await.map_err(failed(action))?;
    let next = next.ok_or_else(|| corrupt("audit_head", "last", "no row"))?;
    let number: i64 = next.try_get_by_index(0).map_err(failed(action))?;
    let model = Model { number, ..Model::from(row) };
    set::insert(conn, &[model], "").await.map_err(failed(action))?;
    Ok(number)
}

pub(super) async fn page(
    conn: &impl ConnectionTrait,
    filter: &AuditFilter,
    before: Option<i64>,
    limit: u32,
) -> Result<Vec<AuditRow>> {
    let either = |id: Column, name: Column, text: &str| {
        (!text.is_empty()).then(|| Condition::any().add(id.eq(text)).add(name.eq(text)))
    };
    // "token" is all that is done to tokens.
    let action = (!filter.action.is_empty()).then(|| {
        let kind = Column::Action.starts_with(format!("{}.", filter.action));
        Condition::any().add(Column::Action.eq(filter.action.as_str())).add(kind)
    });
    let condition = Condition::all()
        .add_option(either(Column::Actor, Column::ActorName, &filter.actor))
        .add_option(action)
        .add_option(either(Column::Object, Column::ObjectName, &filter.object))
        .add_option(filter.from.map(|from| Column::At.gte(from)))
        .add_option(filter.until.map(|until| Column::At.lt(until)))
        .add_option(before.map(|before| Column::Number.lt(before)));
    let select =
        Entity::find().filter(condition).order_by_desc(Column::Number).limit(u64::from(limit));
    set::rows(conn, select, "read the audit log").await
}
