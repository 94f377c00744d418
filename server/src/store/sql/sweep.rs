//! What should never be: counts and open needs that are not what the jobs say.

use kiln_core::id::BuildId;
use sea_orm::{ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QuerySelect, Statement};
use uuid::Uuid;

use super::{super::Result, build, error::failed};

#[derive(FromQueryResult)]
struct Wrong {
    id: Uuid,
}

/// The counts of a build by its jobs, one after the other as its columns are.
const COUNTS: [(&str, &str); 8] = [
    ("blocked", "j.status='blocked'"),
    ("queued", "j.status='queued'"),
    ("leased", "j.status='leased'"),
    ("running", "j.status='running'"),
    ("succeeded", "j.status='succeeded'"),
    ("failed", "j.status='failed' AND NOT j.allow_failure"),
    ("cancelled", "j.status='cancelled'"),
    ("tolerated", "j.status='failed' AND j.allow_failure"),
];

fn text(builds: &str, limit: u32) -> String {
    let sums: Vec<_> = COUNTS
        .iter()
        .map(|(name, test)| format!("SUM(CASE WHEN {test} THEN 1 ELSE 0 END) AS {name}"))
        .collect();
    let differ: Vec<_> =
        COUNTS.iter().map(|(name, _)| format!("b.{name}<>COALESCE(s.{name},0)")).collect();
    format!(
        "SELECT b.id AS id FROM build b LEFT JOIN (SELECT j.build, {} FROM job j WHERE j.build IN ({builds}) \
         GROUP BY j.build) s ON s.build=b.id WHERE b.id IN ({builds}) AND ({} OR EXISTS (\
         SELECT 1 FROM job j WHERE j.build=b.id AND j.status='blocked' AND j.open_needs<>(\
         SELECT COUNT(*) FROM need n JOIN job d ON d.id=n.needed WHERE n.job=j.id \
         AND d.status NOT IN ('succeeded','failed','cancelled')))) ORDER BY b.id LIMIT {limit}",
        sums.join(", "),
        differ.join(" OR "),
    )
}

/// Compares in pieces, so that no statement reads all jobs at once.
pub(super) async fn inconsistent(conn: &impl ConnectionTrait, limit: u32) -> Result<Vec<BuildId>> {
    let action = "compare builds with their jobs";
    let active: Vec<Uuid> = build::Entity::find()
        .select_only()
        .column(build::Column::Id)
        .filter(build::active())
        .into_tuple()
        .all(conn)
        .await
        .map_err(failed(action))?;
    let mut wrong = vec![];
    for piece in active.chunks(100) {
        let piece = super::set::padded(piece);
        let places: Vec<_> = (1..=piece.len()).map(|place| format!("${place}")).collect();
        let statement = Statement::from_sql_and_values(
            conn.get_database_backend(),
            text(&places.join(","), limit),
            piece.into_iter().map(sea_orm::Value::from),
        );
        let found = Wrong::find_by_statement(statement).all(conn).await.map_err(failed(action))?;
        wrong.extend(found.into_iter().map(|row| BuildId::from_uuid(row.id)));
        if wrong.len() >= limit as usize {
            break;
        }
    }
    wrong.truncate(limit as usize);
    Ok(wrong)
}
