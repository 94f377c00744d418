//! Table `secret_grant`: which value of a secret a lease was given, by id; never the value.

use std::collections::BTreeMap;

use kiln_core::id::{LeaseId, SecretId};
use sea_orm::{
    QueryOrder, QuerySelect,
    entity::prelude::*,
    sea_query::{ExprTrait, Query},
};

use super::{
    super::{Error, GrantRow, Result, SecretRow},
    error::failed,
    lease, secret, set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "secret_grant")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub lease: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub secret: Uuid,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&GrantRow> for Model {
    fn from(row: &GrantRow) -> Self {
        Self { lease: row.lease.uuid(), name: row.name.clone(), secret: row.secret.uuid() }
    }
}

impl TryFrom<Model> for GrantRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok(Self {
            lease: LeaseId::from_uuid(model.lease),
            name: model.name,
            secret: SecretId::from_uuid(model.secret),
        })
    }
}

pub(super) async fn insert(conn: &impl ConnectionTrait, rows: &[GrantRow]) -> Result<()> {
    let models: Vec<_> = rows.iter().map(Model::from).collect();
    set::insert(conn, &models, "ON CONFLICT DO NOTHING").await.map_err(failed("insert grants"))
}

/// The values that these leases were given, by lease and name.
pub(super) async fn values(
    conn: &impl ConnectionTrait,
    leases: &[LeaseId],
) -> Result<Vec<(LeaseId, SecretRow)>> {
    let ids = leases.iter().map(|id| id.uuid());
    let grants: Vec<GrantRow> =
        set::among(conn, Entity::find(), Column::Lease, ids, "read grants").await?;
    let ids = grants.iter().map(|grant| grant.secret.uuid());
    let select = secret::Entity::find();
    let rows: Vec<SecretRow> =
        set::among(conn, select, secret::Column::Id, ids, "read granted secrets").await?;
    let rows: BTreeMap<SecretId, SecretRow> = rows.into_iter().map(|row| (row.id, row)).collect();
    let values = grants.iter().filter_map(|g| Some((g.lease, rows.get(&g.secret)?.clone())));
    let mut values: Vec<_> = values.collect();
    values.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    Ok(values)
}

/// Leases that were given secrets and hold their job no more.
pub(super) async fn of_ended_leases(
    conn: &impl ConnectionTrait,
    after: Option<LeaseId>,
    limit: u32,
) -> Result<Vec<LeaseId>> {
    let open = Query::select()
        .expr(Expr::val(1))
        .from(lease::Entity)
        .and_where(Expr::col((lease::Entity, lease::Column::Id)).equals((Entity, Column::Lease)))
        .and_where(Expr::col((lease::Entity, lease::Column::Open)))
        .to_owned();
    let mut select = Entity::find()
        .select_only()
        .column(Column::Lease)
        .distinct()
        .filter(Expr::exists(open).not())
        .order_by_asc(Column::Lease)
        .limit(u64::from(limit));
    if let Some(after) = after {
        select = select.filter(Column::Lease.gt(after.uuid()));
    }
    let found: Vec<Uuid> =
        select.into_tuple().all(conn).await.map_err(failed("find grants of ended leases"))?;
    Ok(found.into_iter().map(LeaseId::from_uuid).collect())
}

pub(super) async fn delete(conn: &impl ConnectionTrait, leases: &[LeaseId]) -> Result<()> {
    for piece in leases.chunks(set::MOST) {
        let ids: Vec<Uuid> = piece.iter().map(|id| id.uuid()).collect();
        Entity::delete_many()
            .filter(Column::Lease.is_in(set::padded(&ids)))
            .exec(conn)
            .await
            .map_err(failed("delete grants"))?;
    }
    Ok(())
}
