//! Appending to one log.

use std::fmt;

use bytes::Bytes;
use kiln_core::{
    id::{AgentId, LeaseId},
    spec::is_name,
};

use super::{
    Error, LATE, Logs, MAX_SIZE, MAX_STREAMS, Result,
    index::{Append, Appended, Key, LogRow, LogState, Stage},
};
use crate::{uploads::Seat, wake::Topic};

/// Other replicas may append the same bytes meanwhile; more often than this is no coincidence.
const RETRIES: usize = 8;
/// Stages of one lease.
const MAX_STAGES: u32 = 1_000;
const MAX_STAGE_NAME: usize = 200;

/// The only writer of a log in this process.
pub struct Writer {
    logs: Logs,
    row: LogRow,
    stages: u32,
    seat: Seat<Key>,
}

impl Writer {
    pub(super) async fn open(
        logs: &Logs,
        agent: AgentId,
        lease: LeaseId,
        stream: &str,
    ) -> Result<Self> {
        check_stream(stream)?;
        let lease = logs.lease(lease).await?;
        if lease.agent != agent {
            return Err(Error::not_found("lease", lease.id));
        }
        let key = Key { lease: lease.id, stream: stream.to_owned() };
        let index = &logs.parts.index;
        let known = index.logs_of(lease.id).await?;
        if known.iter().all(|row| row.key != key) {
            if logs.is_late(&lease, LATE) {
                return Err(Error::Sealed { size: 0 });
            }
            if known.len() >= MAX_STREAMS {
                let message =
                    format!("the lease has {MAX_STREAMS} streams already; use one of them");
                return Err(Error::invalid("open.stream", message));
            }
        }
        let seat = logs.seats.take(&key).await.ok_or(Error::Replaced)?;
        let row = index.open_log(&fresh(key, &lease, logs.now())).await?;
        logs.parts.store.check(&row).await?;
        let stages = u32::try_from(index.stages(lease.id).await?.len()).unwrap_or(u32::MAX);
        Ok(Self { logs: logs.clone(), row, stages, seat })
    }

    /// Bytes that are durable.
    pub fn durable(&self) -> u64 {
        self.row.size
    }

    /// Their CRC-32.
    pub fn crc(&self) -> u32 {
        self.row.crc
    }

    /// Stages that are durable.
    pub fn stages(&self) -> u32 {
        self.stages
    }

    pub fn is_sealed(&self) -> bool {
        self.row.state != LogState::Open
    }

    /// A newer writer asked for the log: this one has to go.
    pub fn is_replaced(&self) -> bool {
        self.seat.is_replaced()
    }

    /// Returns when that happens.
    pub async fn replaced(&self) {
        self.seat.replaced().await;
    }

    /// Appends these pieces, which lie one behind the other from `offset` on. What is held is skipped, a gap is
    /// refused. When this returns, they are durable.
    pub async fn append(&mut self, offset: u64, pieces: &[Bytes]) -> Result<()> {
        let end = offset + pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        for _ in 0..RETRIES {
            let wanted = self.row.size;
            if end <= wanted {
                return Ok(());
            }
            if self.is_sealed() {
                return Err(Error::Sealed { size: wanted });
            }
            if offset > wanted {
                return Err(Error::Gap { wanted, offset });
            }
            if end > MAX_SIZE {
                let message = format!("a log has at most {MAX_SIZE} bytes; lower the job's limit");
                return Err(Error::invalid("chunk.offset", message));
            }
            if self.append_at_end(skip(pieces, wanted - offset)).await? {
                return Ok(());
            }
        }
        Err(Error::Busy("others append to this log at the same time; open it again"))
    }

    /// False where the log ended elsewhere: the row was read again.
    async fn append_at_end(&mut self, pieces: Vec<Bytes>) -> Result<bool> {
        let place = self.logs.parts.store.write(&self.row, &pieces).await?;
        let mut hasher = crc32fast::Hasher::new();
        for piece in &pieces {
            hasher.update(piece);
        }
        let append = Append {
            key: self.row.key.clone(),
            start: self.row.size,
            length: pieces.iter().map(|piece| piece.len() as u64).sum(),
            crc: hasher.finalize(),
            place,
        };
        match self.logs.committer.commit(append).await? {
            Appended::Done(row) => {
                self.row = row;
                self.publish();
                if let Err(error) = self.logs.parts.store.settle(&self.row).await {
                    // The bytes are durable where they are; the next append or the sweep tries again.
                    tracing::warn!(lease = %self.row.key.lease, %error, "the tail of a log was not moved");
                }
                self.refresh_tail().await?;
                Ok(true)
            }
            Appended::Refused(row) => {
                self.row = row;
                Ok(false)
            }
        }
    }

    /// Where the store moved the tail, the row says so.
    async fn refresh_tail(&mut self) -> Result<()> {
        if self.row.size - self.row.tail >= super::index::SEGMENT
            && let Some(row) = self.logs.parts.index.log(&self.row.key).await?
        {
            self.row = row;
        }
        Ok(())
    }

    /// Records the next stage of the lease.
    pub async fn stage(&mut self, stage: &Stage) -> Result<()> {
        if stage.name.is_empty() || stage.name.len() > MAX_STAGE_NAME {
            let message = format!("needs 1 to {MAX_STAGE_NAME} bytes");
            return Err(Error::invalid("stage.name", message));
        }
        if self.stages >= MAX_STAGES {
            let message = format!("a job has at most {MAX_STAGES} stages");
            return Err(Error::invalid("stage", message));
        }
        if self.is_sealed() {
            return Err(Error::Sealed { size: self.row.size });
        }
        self.logs.parts.index.add_stage(self.row.key.lease, self.stages, stage).await?;
        self.stages += 1;
        self.publish();
        Ok(())
    }

    /// Closes the log, of which all `length` bytes must be there.
    pub async fn finish(&mut self, length: u64) -> Result<()> {
        let size = self.row.size;
        if length > size {
            return Err(Error::Gap { wanted: size, offset: length });
        }
        if length < size {
            let message = format!("{length} is less than the {size} bytes that were sent");
            return Err(Error::invalid("end.length", message));
        }
        if self.is_sealed() {
            return Ok(());
        }
        let lease = self.logs.lease(self.row.key.lease).await?;
        if let Some(&said) = lease.log_lengths.get(&self.row.key.stream)
            && said != length
        {
            let message = format!("the report of the lease said {said} bytes, this says {length}");
            return Err(Error::invalid("end.length", message));
        }
        let (index, now) = (&self.logs.parts.index, self.logs.now());
        let closed = index.close_log(&self.row.key, size, LogState::Complete, now).await?;
        self.row = closed.ok_or_else(|| Error::not_found("log", self.row.key.lease))?;
        self.publish();
        if self.is_sealed() { Ok(()) } else { Err(Error::Gap { wanted: size, offset: length }) }
    }

    fn publish(&self) {
        self.logs.parts.wake.publish(&[Topic::Log(self.row.key.lease)]);
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("row", &self.row).finish_non_exhaustive()
    }
}

fn fresh(key: Key, lease: &crate::store::LeaseRow, now: kiln_core::Millis) -> LogRow {
    LogRow {
        key,
        job: lease.job,
        build: lease.build,
        size: 0,
        crc: 0,
        tail: 0,
        state: LogState::Open,
        packed: false,
        created_at: now,
        updated_at: now,
    }
}

/// The pieces without their first bytes.
fn skip(pieces: &[Bytes], bytes: u64) -> Vec<Bytes> {
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut rest = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let cut = left.min(piece.len());
        left -= cut;
        if cut < piece.len() {
            rest.push(piece.slice(cut..));
        }
    }
    rest
}

/// A stream's name is part of a file's.
fn check_stream(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    let message =
        "needs 1 to 100 of A-Z, a-z, 0-9, '.', '_' and '-', and begins with no '.' or '-'";
    Err(Error::invalid("open.stream", message))
}
