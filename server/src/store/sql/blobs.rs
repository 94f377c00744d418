//! Tables `blob`, `blob_pin` and `blob_object`: which blobs are stored, what holds them, and the objects that are no
//! blob's: announced ones and doomed ones.

use async_trait::async_trait;
use kiln_core::{Millis, id::LeaseId};
use sea_orm::{ConnectionTrait, QueryResult, Value};
use uuid::Uuid;

use super::{
    super::Result,
    Sql,
    error::corrupt,
    logs::lock,
    query::{self, all, execute, get, get_unsigned, signed},
};
use crate::artifacts::{BlobIndex, BlobRow, Digest, Holder, Pin};

fn digest(row: &QueryResult) -> Result<Digest> {
    let text: String = get(row, "sha256")?;
    Digest::parse(&text).ok_or_else(|| corrupt("blob", "sha256", text))
}

fn blob(row: &QueryResult) -> Result<BlobRow> {
    Ok(BlobRow {
        digest: digest(row)?,
        size: get_unsigned(row, "blob", "size")?,
        object: get(row, "object")?,
        stored_at: get(row, "stored_at")?,
    })
}

fn pin(row: &QueryResult) -> Result<Pin> {
    let lease: Option<Uuid> = get(row, "lease")?;
    let holder = lease.map_or(Holder::Submission, |id| Holder::Lease(LeaseId::from_uuid(id)));
    let size = get_unsigned(row, "blob_pin", "size")?;
    Ok(Pin { digest: digest(row)?, holder, size, expires_at: get(row, "expires_at")? })
}

/// Pins a blob that is there, under the lock of its row: the collector takes the same lock first.
async fn hold(conn: &impl ConnectionTrait, pin: &Pin) -> Result<bool> {
    let text = format!("SELECT sha256 FROM blob WHERE sha256 = $1{}", lock(conn));
    let here = all(conn, "lock a blob", &text, vec![pin.digest.as_str().into()]).await?;
    if here.is_empty() {
        return Ok(false);
    }
    let lease = match pin.holder {
        Holder::Lease(lease) => Some(lease.uuid()),
        Holder::Submission => None,
    };
    let holder = lease.map_or_else(|| "submission".to_owned(), |lease| lease.simple().to_string());
    let text = "INSERT INTO blob_pin (sha256, holder, lease, size, expires_at) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (sha256, holder) DO UPDATE SET expires_at = \
         CASE WHEN excluded.expires_at > blob_pin.expires_at THEN excluded.expires_at ELSE blob_pin.expires_at END";
    let values: Vec<Value> = vec![
        pin.digest.as_str().into(),
        holder.into(),
        lease.into(),
        signed(pin.size),
        pin.expires_at.into(),
    ];
    execute(conn, "pin a blob", text, values).await?;
    Ok(true)
}

#[async_trait]
impl BlobIndex for Sql {
    async fn identity(&self, name: &str, fresh: Option<&str>) -> Result<Option<String>> {
        query::identity(&self.writer, name, fresh).await
    }

    async fn blob(&self, digest: &Digest) -> Result<Option<BlobRow>> {
        let text = "SELECT sha256, size, object, stored_at FROM blob WHERE sha256 = $1";
        let rows = all(&self.reader, "read a blob", text, vec![digest.as_str().into()]).await?;
        rows.first().map(blob).transpose()
    }

    async fn pin(&self, pin: &Pin) -> Result<bool> {
        let tx = self.open().await?;
        let held = hold(&*tx, pin).await?;
        tx.finish().await?;
        Ok(held)
    }

    async fn announce(&self, object: &str, now: Millis) -> Result<()> {
        let tx = self.open().await?;
        let text = "INSERT INTO blob_object (name, announced_at, doomed) VALUES ($1, $2, $3)";
        let values = vec![object.into(), now.into(), false.into()];
        execute(&*tx, "announce an object", text, values).await?;
        tx.finish().await
    }

    async fn store(&self, blob: &BlobRow, pin: &Pin) -> Result<bool> {
        let tx = self.open().await?;
        // Doomed at first: it stays so where another upload was quicker.
        let text = "UPDATE blob_object SET doomed = $2 WHERE name = $1 AND NOT doomed";
        let values = vec![blob.object.as_str().into(), true.into()];
        if execute(&*tx, "claim an object", text, values).await? == 0 {
            return Ok(false);
        }
        let text = "INSERT INTO blob (sha256, size, leaving, object, stored_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (sha256) DO NOTHING";
        let values = vec![
            blob.digest.as_str().into(),
            signed(blob.size),
            false.into(),
            blob.object.as_str().into(),
            blob.stored_at.into(),
        ];
        if execute(&*tx, "store a blob", text, values).await? == 1 {
            let text = "DELETE FROM blob_object WHERE name = $1";
            execute(&*tx, "claim an object", text, vec![blob.object.as_str().into()]).await?;
        }
        let held = hold(&*tx, pin).await?;
        tx.finish().await?;
        Ok(held)
    }

    async fn pins_of(&self, lease: LeaseId) -> Result<Vec<Pin>> {
        let text = "SELECT sha256, lease, size, expires_at FROM blob_pin WHERE lease = $1";
        let rows = all(&self.reader, "read pins", text, vec![lease.uuid().into()]).await?;
        rows.iter().map(pin).collect()
    }

    async fn pinning(&self, after: Option<LeaseId>, limit: u32) -> Result<Vec<LeaseId>> {
        let text = "SELECT DISTINCT lease FROM blob_pin WHERE lease > $1 ORDER BY lease LIMIT $2";
        let after = after.map_or(Uuid::nil(), LeaseId::uuid);
        let values = vec![after.into(), i64::from(limit).into()];
        let rows = all(&self.reader, "read pins", text, values).await?;
        rows.iter().map(|row| get(row, "lease").map(LeaseId::from_uuid)).collect()
    }

    async fn unpin(&self, lease: LeaseId) -> Result<()> {
        let tx = self.open().await?;
        let text = "DELETE FROM blob_pin WHERE lease = $1";
        execute(&*tx, "unpin blobs", text, vec![lease.uuid().into()]).await?;
        tx.finish().await
    }

    async fn take_unreferenced(
        &self,
        stored_before: Millis,
        now: Millis,
        limit: u32,
    ) -> Result<Vec<BlobRow>> {
        const FREE: &str = "stored_at < $1 \
             AND NOT EXISTS (SELECT 1 FROM blob_pin AS p WHERE p.sha256 = blob.sha256) \
             AND NOT EXISTS (SELECT 1 FROM artifact AS a WHERE a.sha256 = blob.sha256) \
             AND NOT EXISTS (SELECT 1 FROM job_spec AS s WHERE s.source = blob.sha256)";
        let tx = self.open().await?;
        let text = "DELETE FROM blob_pin WHERE expires_at <= $1";
        execute(&*tx, "forget pins", text, vec![now.into()]).await?;
        let lock = lock(&*tx);
        let text = format!(
            "SELECT sha256, size, object, stored_at FROM blob WHERE {FREE} ORDER BY sha256 LIMIT $2{lock}"
        );
        let values = vec![stored_before.into(), i64::from(limit).into()];
        let mut taken = vec![];
        for row in all(&*tx, "look for garbage", &text, values).await? {
            let blob = blob(&row)?;
            // Asked again under the lock: someone may have pinned it before the lock was given.
            let text = format!("DELETE FROM blob WHERE sha256 = $2 AND {FREE}");
            let values = vec![stored_before.into(), blob.digest.as_str().into()];
            if execute(&*tx, "take garbage", &text, values).await? == 1 {
                let text =
                    "INSERT INTO blob_object (name, announced_at, doomed) VALUES ($1, $2, $3)";
                let values = vec![blob.object.as_str().into(), now.into(), true.into()];
                execute(&*tx, "doom an object", text, values).await?;
                taken.push(blob);
            }
        }
        tx.finish().await?;
        Ok(taken)
    }

    async fn doomed(&self, announced_before: Millis, limit: u32) -> Result<Vec<String>> {
        let tx = self.open().await?;
        let text = "UPDATE blob_object SET doomed = $2 WHERE NOT doomed AND announced_at < $1";
        let values = vec![announced_before.into(), true.into()];
        execute(&*tx, "doom objects", text, values).await?;
        let text = "SELECT name FROM blob_object WHERE doomed ORDER BY name LIMIT $1";
        let rows = all(&*tx, "read doomed objects", text, vec![i64::from(limit).into()]).await?;
        tx.finish().await?;
        rows.iter().map(|row| get(row, "name")).collect()
    }

    async fn forget(&self, objects: &[String]) -> Result<()> {
        let tx = self.open().await?;
        for object in objects {
            let text = "DELETE FROM blob_object WHERE name = $1 AND doomed";
            execute(&*tx, "forget an object", text, vec![object.as_str().into()]).await?;
        }
        tx.finish().await
    }

    async fn expire(&self, ended_before: Millis, limit: u32) -> Result<u64> {
        let tx = self.open().await?;
        let text = "SELECT id FROM build WHERE finished_at < $1 AND (EXISTS \
             (SELECT 1 FROM job JOIN artifact ON artifact.job = job.id WHERE job.build = build.id) \
             OR EXISTS (SELECT 1 FROM job JOIN job_spec ON job_spec.job = job.id \
             WHERE job.build = build.id AND job_spec.source IS NOT NULL)) LIMIT $2";
        let values = vec![ended_before.into(), i64::from(limit).into()];
        let builds = all(&*tx, "read old builds", text, values).await?;
        for row in &builds {
            let id: Uuid = get(row, "id")?;
            let jobs = "(SELECT id FROM job WHERE build = $1)";
            let text = format!("DELETE FROM artifact WHERE job IN {jobs}");
            execute(&*tx, "forget artifacts", &text, vec![id.into()]).await?;
            let text = format!("UPDATE job_spec SET source = NULL WHERE job IN {jobs}");
            execute(&*tx, "forget sources", &text, vec![id.into()]).await?;
        }
        tx.finish().await?;
        Ok(builds.len() as u64)
    }
}
