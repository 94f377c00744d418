//! Table `agent`.

use kiln_core::{Millis, agent::Admission, id::AgentId};
use sea_orm::{QuerySelect, entity::prelude::*, sea_query::Expr};

use super::{
    super::{AgentCertificate, AgentRow, Error, Result},
    error::{failed, from_json, taken, to_json},
    set,
};

const TABLE: &str = "agent";

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "agent")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub name: String,
    pub credential_sha256: Vec<u8>,
    pub admission: String,
    pub profile: String,
    pub load: String,
    pub created_at: i64,
    pub seen_at: i64,
    pub epoch: i64,
    pub public_key_sha256: Option<Vec<u8>>,
    pub certificate_ends_at: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&AgentRow> for Model {
    fn from(row: &AgentRow) -> Self {
        Self {
            id: row.id.uuid(),
            name: row.name.clone(),
            credential_sha256: row.credential_sha256.clone(),
            admission: to_json(&row.admission),
            profile: to_json(&row.profile),
            load: to_json(&row.load),
            created_at: row.created_at,
            seen_at: row.seen_at,
            epoch: row.epoch,
            public_key_sha256: row.certificate.as_ref().map(|one| one.public_key_sha256.clone()),
            certificate_ends_at: row.certificate.as_ref().map(|one| one.ends_at),
        }
    }
}

impl TryFrom<Model> for AgentRow {
    type Error = Error;

    fn try_from(model: Model) -> Result<Self> {
        let certificate = model.public_key_sha256.zip(model.certificate_ends_at);
        Ok(Self {
            id: AgentId::from_uuid(model.id),
            name: model.name,
            credential_sha256: model.credential_sha256,
            admission: from_json(TABLE, "admission", &model.admission)?,
            profile: from_json(TABLE, "profile", &model.profile)?,
            load: from_json(TABLE, "load", &model.load)?,
            created_at: model.created_at,
            seen_at: model.seen_at,
            epoch: model.epoch,
            certificate: certificate.map(|(public_key_sha256, ends_at)| AgentCertificate {
                public_key_sha256,
                ends_at,
            }),
        })
    }
}

pub(super) async fn insert(conn: &impl ConnectionTrait, row: &AgentRow) -> Result<()> {
    let models = [Model::from(row)];
    set::insert(conn, &models, "").await.map_err(taken("insert an agent", "agent", &row.name))
}

pub(super) async fn save(conn: &impl ConnectionTrait, rows: &[AgentRow]) -> Result<()> {
    let columns = [
        Column::CredentialSha256,
        Column::Admission,
        Column::Profile,
        Column::Load,
        Column::SeenAt,
        Column::Epoch,
        Column::PublicKeySha256,
        Column::CertificateEndsAt,
    ];
    let models: Vec<_> = rows.iter().map(Model::from).collect();
    set::update(conn, &models, Column::Id, &columns).await.map_err(failed("save agents"))
}

/// Admissions of some agents, or of all.
pub(super) async fn admissions(
    conn: &impl ConnectionTrait,
    agents: Option<&[AgentId]>,
) -> Result<Vec<(AgentId, Admission)>> {
    let select = || Entity::find().select_only().columns([Column::Id, Column::Admission]);
    let mut found: Vec<(Uuid, String)> = vec![];
    let action = "read the admissions of agents";
    match agents {
        None => found = select().into_tuple().all(conn).await.map_err(failed(action))?,
        Some(agents) => {
            let ids: Vec<Uuid> = agents.iter().map(|agent| agent.uuid()).collect();
            for piece in ids.chunks(set::MOST) {
                let select = select().filter(Column::Id.is_in(set::padded(piece)));
                found.extend(
                    select
                        .into_tuple::<(Uuid, String)>()
                        .all(conn)
                        .await
                        .map_err(failed(action))?,
                );
            }
        }
    }
    let read = |(id, text): (Uuid, String)| {
        Ok((AgentId::from_uuid(id), from_json(TABLE, "admission", &text)?))
    };
    found.into_iter().map(read).collect()
}

/// Certificates that would end later end at this moment.
pub(super) async fn end_certificates(conn: &impl ConnectionTrait, at: Millis) -> Result<()> {
    let ended = Entity::update_many()
        .col_expr(Column::CertificateEndsAt, Expr::value(at))
        .filter(Column::CertificateEndsAt.gt(at))
        .exec(conn);
    ended.await.map(drop).map_err(failed("end certificates"))
}

pub(super) async fn delete(conn: &impl ConnectionTrait, id: AgentId) -> Result<()> {
    let deleted = Entity::delete_by_id(id.uuid()).exec(conn).await;
    deleted.map(drop).map_err(failed("delete an agent"))
}
