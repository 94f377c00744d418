//! Table `concurrency_group`.

use std::collections::BTreeMap;

use kiln_core::id::ProjectId;
use sea_orm::{Condition, QuerySelect, entity::prelude::*, sea_query::LockType};

use super::{
    super::{Error, GroupRow, Result},
    error::{corrupt, failed, unsigned},
    set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "concurrency_group")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub project: Uuid,
    pub name: String,
    pub limit: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&GroupRow> for Model {
    fn from(row: &GroupRow) -> Self {
        Self {
            id: row.id,
            project: row.project.uuid(),
            name: row.name.clone(),
            limit: row.limit.into(),
        }
    }
}

impl TryFrom<Model> for GroupRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok(Self {
            id: model.id,
            project: ProjectId::from_uuid(model.project),
            name: model.name,
            limit: unsigned("concurrency_group", "limit", model.limit)?,
        })
    }
}

type Names = BTreeMap<(ProjectId, String), Uuid>;

async fn ids(conn: &impl ConnectionTrait, groups: &[GroupRow]) -> Result<Names> {
    let mut known = Names::new();
    for piece in groups.chunks(100) {
        let one = |group: &GroupRow| {
            Condition::all()
                .add(Column::Project.eq(group.project.uuid()))
                .add(Column::Name.eq(group.name.as_str()))
        };
        let any = set::padded(piece).iter().map(one).fold(Condition::any(), Condition::add);
        let found: Vec<GroupRow> =
            set::rows(conn, Entity::find().filter(any), "find groups").await?;
        known.extend(found.into_iter().map(|row| ((row.project, row.name), row.id)));
    }
    Ok(known)
}

pub(super) async fn ensure(
    conn: &impl ConnectionTrait,
    groups: &[GroupRow],
) -> Result<Vec<GroupRow>> {
    let name = |group: &GroupRow| (group.project, group.name.clone());
    let mut known = ids(conn, groups).await?;
    let mut fresh: Vec<_> =
        groups.iter().filter(|group| !known.contains_key(&name(group))).collect();
    if !fresh.is_empty() {
        fresh.sort_by_key(|group| name(group));
        let models: Vec<_> = fresh.into_iter().map(Model::from).collect();
        let tail = "ON CONFLICT (\"project\",\"name\") DO NOTHING";
        set::insert(conn, &models, tail).await.map_err(failed("insert groups"))?;
        known = ids(conn, groups).await?;
    }
    let found = |group: &GroupRow| {
        let id = known.get(&name(group)).copied();
        let id = id.ok_or_else(|| corrupt("concurrency_group", "name", &group.name))?;
        Ok(GroupRow { id, ..group.clone() })
    };
    let saved = groups.iter().map(found).collect::<Result<Vec<_>>>()?;
    let limits: BTreeMap<_, _> = saved.iter().map(|group| (group.id, group.limit)).collect();
    let mut changed = lock(conn, &limits.keys().copied().collect::<Vec<_>>()).await?;
    changed.retain(|group| limits.get(&group.id) != Some(&group.limit));
    let models: Vec<_> = changed
        .into_iter()
        .map(|group| {
            let limit = limits.get(&group.id).copied().unwrap_or(group.limit);
            Model::from(&GroupRow { limit, ..group })
        })
        .collect();
    set::update(conn, &models, Column::Id, &[Column::Limit])
        .await
        .map_err(failed("save groups"))?;
    Ok(saved)
}

pub(super) async fn lock(conn: &impl ConnectionTrait, ids: &[Uuid]) -> Result<Vec<GroupRow>> {
    let select = Entity::find().lock(LockType::NoKeyUpdate);
    set::among(conn, select, Column::Id, ids.iter().copied(), "lock groups").await
}
