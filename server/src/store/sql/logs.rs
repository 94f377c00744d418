//! Tables `log`, `log_segment`, `log_stage`: the index of the logs.

use std::{collections::BTreeMap, fmt::Write};

use async_trait::async_trait;
use bytes::Bytes;
use kiln_core::{
    Millis,
    id::{BuildId, JobId, LeaseId},
};
use sea_orm::{ConnectionTrait, DbBackend, QueryResult, Value};
use uuid::Uuid;

use super::{
    super::{Error, Result},
    Sql,
    error::corrupt,
    query::{self, all, execute, get, get_unsigned, signed},
};
use crate::logs::index::{
    Append, Appended, Key, LogIndex, LogRow, LogState, Place, Segment, Stage, combine,
};

const COLUMNS: &str =
    "lease, stream, job, build, size, crc, tail, state, packed, created_at, updated_at";

fn key(key: &Key) -> [Value; 2] {
    [key.lease.uuid().into(), key.stream.clone().into()]
}

fn log(row: &QueryResult) -> Result<LogRow> {
    let state: String = get(row, "state")?;
    Ok(LogRow {
        key: Key { lease: LeaseId::from_uuid(get(row, "lease")?), stream: get(row, "stream")? },
        job: JobId::from_uuid(get(row, "job")?),
        build: BuildId::from_uuid(get(row, "build")?),
        size: get_unsigned(row, "log", "size")?,
        crc: get_unsigned(row, "log", "crc")?,
        tail: get_unsigned(row, "log", "tail")?,
        state: LogState::parse(&state).ok_or_else(|| corrupt("log", "state", state))?,
        packed: get(row, "packed")?,
        created_at: get(row, "created_at")?,
        updated_at: get(row, "updated_at")?,
    })
}

fn segment(row: &QueryResult) -> Result<Segment> {
    let data: Option<Vec<u8>> = get(row, "data")?;
    Ok(Segment {
        start: get_unsigned(row, "log_segment", "start")?,
        length: get_unsigned(row, "log_segment", "length")?,
        crc: get_unsigned(row, "log_segment", "crc")?,
        data: data.map(Bytes::from),
    })
}

/// The lock of a row on Postgres; on SQLite the transaction is the lock.
pub(super) fn lock(conn: &impl ConnectionTrait) -> &'static str {
    if conn.get_database_backend() == DbBackend::Postgres { " FOR NO KEY UPDATE" } else { "" }
}

/// These logs, locked in the order of their keys.
async fn locked(conn: &impl ConnectionTrait, keys: &[&Key]) -> Result<BTreeMap<Key, LogRow>> {
    let mut text = format!("SELECT {COLUMNS} FROM log WHERE ");
    let mut values = Vec::with_capacity(2 * keys.len());
    for (index, one) in keys.iter().enumerate() {
        let or = if index == 0 { "" } else { " OR " };
        let (a, b) = (2 * index + 1, 2 * index + 2);
        // Writing to a string can't fail.
        let _ = write!(text, "{or}(lease = ${a} AND stream = ${b})");
        values.extend(key(one));
    }
    text += " ORDER BY lease, stream";
    text += lock(conn);
    let rows = all(conn, "lock logs", &text, values).await?;
    let rows = rows.iter().map(log).map(|row| row.map(|row| (row.key.clone(), row)));
    rows.collect()
}

/// Puts the row's size, checksum, tail and time in its place.
async fn save(conn: &impl ConnectionTrait, row: &LogRow) -> Result<()> {
    let text = "UPDATE log SET size = $3, crc = $4, tail = $5, updated_at = $6 \
         WHERE lease = $1 AND stream = $2";
    let mut values = key(&row.key).to_vec();
    values.extend([signed(row.size), i64::from(row.crc).into()]);
    values.extend([signed(row.tail), row.updated_at.into()]);
    execute(conn, "save a log", text, values).await.map(drop)
}

async fn insert_segment(conn: &impl ConnectionTrait, of: &Key, segment: &Segment) -> Result<()> {
    let text = "INSERT INTO log_segment (lease, stream, start, length, crc, data) \
         VALUES ($1, $2, $3, $4, $5, $6)";
    let mut values = key(of).to_vec();
    values.extend([signed(segment.start), signed(segment.length), i64::from(segment.crc).into()]);
    values.push(segment.data.as_ref().map(|bytes| bytes.to_vec()).into());
    execute(conn, "insert a segment", text, values).await.map(drop)
}

/// Makes the last segment longer.
async fn grow(conn: &impl ConnectionTrait, row: &LogRow, append: &Append) -> Result<()> {
    let mut at = key(&row.key).to_vec();
    at.push(signed(row.tail));
    let text = "SELECT start, length, crc, data FROM log_segment \
         WHERE lease = $1 AND stream = $2 AND start = $3";
    let rows = all(conn, "read a segment", text, at.clone()).await?;
    let last = rows.first().ok_or_else(|| corrupt("log", "tail", row.tail))?;
    let last = segment(last)?;
    let text = "UPDATE log_segment SET length = $4, crc = $5 \
         WHERE lease = $1 AND stream = $2 AND start = $3";
    let crc = combine(last.crc, append.crc, append.length);
    at.extend([signed(last.length + append.length), i64::from(crc).into()]);
    execute(conn, "grow a segment", text, at).await.map(drop)
}

async fn append_one(
    conn: &impl ConnectionTrait,
    row: &LogRow,
    append: &Append,
    now: Millis,
) -> Result<Appended> {
    if row.state != LogState::Open || row.size != append.start {
        return Ok(Appended::Refused(row.clone()));
    }
    if row.grows(append) {
        grow(conn, row, append).await?;
    } else {
        let data = match &append.place {
            Place::Row(bytes) => Some(bytes.clone()),
            Place::File | Place::Object => None,
        };
        let Append { start, length, crc, .. } = *append;
        insert_segment(conn, &append.key, &Segment { start, length, crc, data }).await?;
    }
    let row = row.clone().appended(append, now);
    save(conn, &row).await?;
    Ok(Appended::Done(row))
}

#[async_trait]
impl LogIndex for Sql {
    async fn identity(&self, name: &str, fresh: Option<&str>) -> Result<Option<String>> {
        query::identity(&self.writer, name, fresh).await
    }

    async fn open_log(&self, fresh: &LogRow) -> Result<LogRow> {
        if let Some(row) = self.log(&fresh.key).await? {
            return Ok(row);
        }
        let tx = self.open().await?;
        let text = format!(
            "INSERT INTO log ({COLUMNS}) VALUES ($1, $2, $3, $4, 0, 0, 0, $5, $6, $7, $8) \
             ON CONFLICT (lease, stream) DO NOTHING"
        );
        let mut values = key(&fresh.key).to_vec();
        values.extend([fresh.job.uuid().into(), fresh.build.uuid().into()]);
        values.extend([fresh.state.as_str().into(), fresh.packed.into()]);
        values.extend([fresh.created_at.into(), fresh.updated_at.into()]);
        execute(&*tx, "open a log", &text, values).await?;
        let row = locked(&*tx, &[&fresh.key]).await?.remove(&fresh.key);
        tx.finish().await?;
        row.ok_or(Error::Conflict)
    }

    async fn log(&self, of: &Key) -> Result<Option<LogRow>> {
        let text = format!("SELECT {COLUMNS} FROM log WHERE lease = $1 AND stream = $2");
        let rows = all(&self.reader, "read a log", &text, key(of).to_vec()).await?;
        rows.first().map(log).transpose()
    }

    async fn logs_of(&self, lease: LeaseId) -> Result<Vec<LogRow>> {
        let text = format!("SELECT {COLUMNS} FROM log WHERE lease = $1");
        let rows = all(&self.reader, "read logs", &text, vec![lease.uuid().into()]).await?;
        let mut rows: Vec<LogRow> = rows.iter().map(log).collect::<Result<_>>()?;
        // Here, and not in the statement: the order of texts is each database's own.
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(rows)
    }

    async fn append(&self, appends: &[Append], now: Millis) -> Result<Vec<Appended>> {
        let tx = self.open().await?;
        let keys: Vec<&Key> = appends.iter().map(|append| &append.key).collect();
        let mut rows = locked(&*tx, &keys).await?;
        let mut results = Vec::with_capacity(appends.len());
        for append in appends {
            let row = rows.get_mut(&append.key).ok_or(Error::Conflict)?;
            let result = append_one(&*tx, row, append, now).await?;
            if let Appended::Done(new) = &result {
                *row = new.clone();
            }
            results.push(result);
        }
        tx.finish().await?;
        Ok(results)
    }

    async fn segments(&self, of: &Key, offset: u64, limit: u32) -> Result<Vec<Segment>> {
        // The one that `offset` lies in begins at or before it.
        let text = "SELECT start, length, crc, data FROM log_segment \
             WHERE lease = $1 AND stream = $2 AND start + length > $3 AND start >= \
             COALESCE((SELECT MAX(start) FROM log_segment WHERE lease = $1 AND stream = $2 AND start <= $3), 0) \
             ORDER BY start LIMIT $4";
        let mut values = key(of).to_vec();
        values.extend([signed(offset), i64::from(limit).into()]);
        let rows = all(&self.reader, "read segments", text, values).await?;
        rows.iter().map(segment).collect()
    }

    async fn replace(&self, of: &Key, segment: &Segment, tail: u64) -> Result<bool> {
        let tx = self.open().await?;
        if locked(&*tx, &[of]).await?.is_empty() {
            return Ok(false);
        }
        let mut inside = key(of).to_vec();
        inside.extend([signed(segment.start), signed(segment.end())]);
        let text = "SELECT length FROM log_segment \
             WHERE lease = $1 AND stream = $2 AND start >= $3 AND start < $4";
        let mut sum = 0;
        for row in all(&*tx, "read segments", text, inside.clone()).await? {
            sum += get_unsigned::<u64>(&row, "log_segment", "length")?;
        }
        if sum != segment.length {
            return Ok(false);
        }
        let text = "DELETE FROM log_segment \
             WHERE lease = $1 AND stream = $2 AND start >= $3 AND start < $4";
        execute(&*tx, "replace segments", text, inside).await?;
        insert_segment(&*tx, of, segment).await?;
        let text = "UPDATE log SET tail = $3 WHERE lease = $1 AND stream = $2";
        let mut values = key(of).to_vec();
        values.push(signed(tail));
        execute(&*tx, "move a tail", text, values).await?;
        tx.finish().await?;
        Ok(true)
    }

    async fn close_log(
        &self,
        of: &Key,
        size: u64,
        state: LogState,
        now: Millis,
    ) -> Result<Option<LogRow>> {
        let tx = self.open().await?;
        let text = "UPDATE log SET state = $3, updated_at = $4 \
             WHERE lease = $1 AND stream = $2 AND state = 'open' AND size = $5";
        let mut values = key(of).to_vec();
        values.extend([state.as_str().into(), now.into(), signed(size)]);
        execute(&*tx, "close a log", text, values).await?;
        let row = locked(&*tx, &[of]).await?.remove(of);
        tx.finish().await?;
        Ok(row)
    }

    async fn set_packed(&self, of: &Key) -> Result<()> {
        let tx = self.open().await?;
        let text = "UPDATE log SET packed = $3 WHERE lease = $1 AND stream = $2";
        let mut values = key(of).to_vec();
        values.push(true.into());
        execute(&*tx, "seal a log", text, values).await?;
        tx.finish().await
    }

    async fn unpacked(&self, after: Option<&Key>, limit: u32) -> Result<Vec<LogRow>> {
        let (lease, stream) = match after {
            Some(key) => (key.lease.uuid(), key.stream.clone()),
            None => (Uuid::nil(), String::new()),
        };
        let text = format!(
            "SELECT {COLUMNS} FROM log WHERE NOT packed \
             AND (lease > $1 OR (lease = $1 AND stream > $2)) ORDER BY lease, stream LIMIT $3"
        );
        let values = vec![lease.into(), stream.into(), i64::from(limit).into()];
        let rows = all(&self.reader, "read open logs", &text, values).await?;
        rows.iter().map(log).collect()
    }

    async fn closed_before(&self, before: Millis, limit: u32) -> Result<Vec<LeaseId>> {
        // A log was made before it was closed, so the index on that moment narrows this down.
        let text = "SELECT lease FROM log WHERE created_at < $1 AND packed GROUP BY lease \
             HAVING MAX(updated_at) < $1 AND NOT EXISTS \
             (SELECT 1 FROM log AS o WHERE o.lease = log.lease AND (NOT o.packed OR o.updated_at >= $1)) \
             LIMIT $2";
        let values = vec![before.into(), i64::from(limit).into()];
        let rows = all(&self.reader, "read old logs", text, values).await?;
        rows.iter().map(|row| get(row, "lease").map(LeaseId::from_uuid)).collect()
    }

    async fn delete_logs(&self, lease: LeaseId) -> Result<()> {
        let tx = self.open().await?;
        for table in ["log_stage", "log_segment", "log"] {
            let text = format!("DELETE FROM {table} WHERE lease = $1");
            execute(&*tx, "delete logs", &text, vec![lease.uuid().into()]).await?;
        }
        tx.finish().await
    }

    async fn stages(&self, lease: LeaseId) -> Result<Vec<Stage>> {
        let text = "SELECT name, at, position FROM log_stage WHERE lease = $1 ORDER BY number";
        let rows = all(&self.reader, "read stages", text, vec![lease.uuid().into()]).await?;
        let stage = |row: &QueryResult| {
            let offset = get_unsigned(row, "log_stage", "position")?;
            Ok(Stage { name: get(row, "name")?, time: get(row, "at")?, offset })
        };
        rows.iter().map(stage).collect()
    }

    async fn add_stage(&self, lease: LeaseId, index: u32, stage: &Stage) -> Result<()> {
        let tx = self.open().await?;
        let text = "INSERT INTO log_stage (lease, number, name, at, position) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (lease, number) DO NOTHING";
        let mut values: Vec<Value> = vec![lease.uuid().into(), i64::from(index).into()];
        values.extend([stage.name.clone().into(), stage.time.into(), signed(stage.offset)]);
        execute(&*tx, "record a stage", text, values).await?;
        tx.finish().await
    }
}
