//! What retention removes: builds that ended, with every row of theirs, and old records of the audit log.

use kiln_core::{
    Millis,
    id::{BuildId, LeaseId},
};
use sea_orm::ConnectionTrait;
use uuid::Uuid;

use super::{
    super::Result,
    query::{all, execute, get},
};

const OPEN: &str =
    "SELECT 1 FROM lease JOIN job ON job.id = lease.job WHERE job.build = build.id AND lease.open";
const LEASES: &str =
    "SELECT lease.id FROM lease JOIN job ON job.id = lease.job WHERE job.build = $1";
const JOBS: &str = "SELECT id FROM job WHERE build = $1";

/// A build was made before it ended, so that the index on state and creation narrows this down.
pub(super) async fn ended_builds(
    conn: &impl ConnectionTrait,
    before: Millis,
    limit: u32,
) -> Result<Vec<BuildId>> {
    let text = format!(
        "SELECT id FROM build WHERE state IN ('succeeded', 'failed', 'cancelled') AND created_at < $1 \
         AND finished_at < $1 AND NOT EXISTS ({OPEN}) ORDER BY created_at, id LIMIT $2"
    );
    let values = vec![before.into(), i64::from(limit).into()];
    let rows = all(conn, "read old builds", &text, values).await?;
    rows.iter().map(|row| get(row, "id").map(BuildId::from_uuid)).collect()
}

pub(super) async fn leases_of(conn: &impl ConnectionTrait, build: BuildId) -> Result<Vec<LeaseId>> {
    let rows = all(conn, "read the leases of a build", LEASES, vec![build.uuid().into()]).await?;
    rows.iter().map(|row| get(row, "id").map(LeaseId::from_uuid)).collect()
}

/// All rows of a build, whose row is locked.
pub(super) async fn delete_build(
    conn: &impl ConnectionTrait,
    id: BuildId,
    before: Millis,
) -> Result<bool> {
    let action = "delete a build";
    let id: Uuid = id.uuid();
    let due =
        format!("SELECT id FROM build WHERE id = $1 AND finished_at < $2 AND NOT EXISTS ({OPEN})");
    if all(conn, action, &due, vec![id.into(), before.into()]).await?.is_empty() {
        return Ok(false);
    }
    for text in [
        &format!("DELETE FROM secret_grant WHERE lease IN ({LEASES})"),
        "DELETE FROM secret_grant WHERE secret IN (SELECT id FROM secret WHERE build = $1)",
        "DELETE FROM secret WHERE build = $1",
        &format!("DELETE FROM artifact WHERE job IN ({JOBS})"),
        "DELETE FROM need WHERE build = $1",
        &format!("DELETE FROM job_spec WHERE job IN ({JOBS})"),
        &format!("DELETE FROM lease WHERE job IN ({JOBS})"),
        "DELETE FROM event WHERE build = $1",
        "DELETE FROM job WHERE build = $1",
        "DELETE FROM build WHERE id = $1",
    ] {
        execute(conn, action, text, vec![id.into()]).await?;
    }
    Ok(true)
}

/// The oldest are looked at in order of their numbers: those behind the first that stays do so too.
pub(super) async fn delete_audit(
    conn: &impl ConnectionTrait,
    before: Millis,
    limit: u32,
) -> Result<u64> {
    let action = "delete old records of the audit log";
    let text = "SELECT number, at FROM audit WHERE number < (SELECT last FROM audit_head) ORDER BY number LIMIT $1";
    let rows = all(conn, action, text, vec![i64::from(limit).into()]).await?;
    let mut last = None;
    for row in &rows {
        let at: Millis = get(row, "at")?;
        if at >= before {
            break;
        }
        last = Some(get::<i64>(row, "number")?);
    }
    let Some(last) = last else { return Ok(0) };
    execute(conn, action, "DELETE FROM audit WHERE number <= $1", vec![last.into()]).await
}
