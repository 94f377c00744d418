//! Table `class`: sets of constraints that jobs share, found by the digest of their text.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{id::ClassId, schedule::Class};
use sea_orm::{QuerySelect, entity::prelude::*};
use sha2::{Digest, Sha256};

use super::{
    super::{Error, Result},
    error::{corrupt, failed, from_json, to_json},
    set,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "class")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub digest: String,
    pub content: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl TryFrom<Model> for (ClassId, Class) {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        Ok((ClassId::from_uuid(model.id), from_json("class", "content", &model.content)?))
    }
}

/// The maps of a class are sorted, so that equal classes have equal texts.
fn model((id, class): &(ClassId, Class)) -> Model {
    let content = to_json(class);
    let digest = format!("{:x}", Sha256::digest(&content));
    Model { id: id.uuid(), digest, content }
}

async fn ids(
    conn: &impl ConnectionTrait,
    digests: &BTreeSet<&str>,
) -> Result<BTreeMap<String, Uuid>> {
    let digests: Vec<&str> = digests.iter().copied().collect();
    let mut known = BTreeMap::new();
    for piece in digests.chunks(set::MOST) {
        let found: Vec<(String, Uuid)> = Entity::find()
            .select_only()
            .columns([Column::Digest, Column::Id])
            .filter(Column::Digest.is_in(set::padded(piece)))
            .into_tuple()
            .all(conn)
            .await
            .map_err(failed("find classes"))?;
        known.extend(found);
    }
    Ok(known)
}

/// Nearly always all are known, and nothing is written.
pub(super) async fn ensure(
    conn: &impl ConnectionTrait,
    classes: &[(ClassId, Class)],
) -> Result<Vec<ClassId>> {
    let models: Vec<_> = classes.iter().map(model).collect();
    let digests: BTreeSet<_> = models.iter().map(|model| model.digest.as_str()).collect();
    let mut known = ids(conn, &digests).await?;
    if known.len() < digests.len() {
        let mut fresh: Vec<_> =
            models.iter().filter(|model| !known.contains_key(&model.digest)).cloned().collect();
        fresh.sort_by(|a, b| a.digest.cmp(&b.digest));
        let tail = "ON CONFLICT (\"digest\") DO NOTHING";
        set::insert(conn, &fresh, tail).await.map_err(failed("insert classes"))?;
        known = ids(conn, &digests).await?;
    }
    let id = |model: &Model| known.get(&model.digest).copied().map(ClassId::from_uuid);
    models
        .iter()
        .map(|model| id(model).ok_or_else(|| corrupt("class", "digest", &model.digest)))
        .collect()
}
