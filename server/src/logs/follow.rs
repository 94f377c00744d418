//! Following a log: each reader at its own offset and pace, from the store. Hints wake it, a slow look makes sure.

use std::time::Duration;

use bytes::Bytes;
use kiln_core::{
    id::{JobId, LeaseId},
    session::LeasePhase,
};

use super::{Info, Logs, MAIN, Result, frames::FRAME, index::Stage};
use crate::{
    store::{JobRow, LeaseRow},
    wake::Subscription,
};

/// How long a follower waits for the log of a lease that ended without a report: its agent is most likely gone.
const LOST: Duration = Duration::from_secs(30);
/// How long for the rest of a log whose job has reported its end.
const SILENT: Duration = Duration::from_mins(5);

/// The next of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Piece {
    pub data: Bytes,
    /// Of the first byte.
    pub offset: u64,
    /// None: the job was never leased.
    pub lease: Option<LeaseId>,
    /// Begins at the end of these bytes.
    pub stage: Option<Stage>,
    /// The last piece.
    pub complete: bool,
    pub truncated: bool,
}

/// A reader of a job's log.
#[derive(Debug)]
pub struct Follower {
    logs: Logs,
    job: JobRow,
    stream: String,
    /// Only the lease that was named; else also those that follow.
    pinned: bool,
    lease: Option<LeaseRow>,
    offset: u64,
    /// Where it began, for the stages.
    start: u64,
    /// Stages that were delivered or lie before the start.
    stages: usize,
    info: Option<Info>,
    hints: Subscription,
    ended: bool,
}

impl Follower {
    /// `lease`: only that attempt. None: the last, and those that follow it.
    pub async fn new(
        logs: &Logs,
        job: JobId,
        lease: Option<LeaseId>,
        stream: &str,
        offset: u64,
    ) -> Result<Self> {
        let job = logs.job(job).await?;
        let hints = logs.subscribe(lease, &job);
        let row = logs.lease_of(job.job.id, lease).await?;
        let stream = if stream.is_empty() { MAIN } else { stream }.to_owned();
        let mut follower = Self {
            logs: logs.clone(),
            job,
            stream,
            pinned: lease.is_some(),
            lease: None,
            offset: 0,
            start: 0,
            stages: 0,
            info: None,
            hints,
            ended: false,
        };
        if let Some(row) = row {
            follower.turn_to(row, offset);
        }
        Ok(follower)
    }

    fn turn_to(&mut self, lease: LeaseRow, offset: u64) {
        self.hints = self.logs.subscribe(Some(lease.id), &self.job);
        self.lease = Some(lease);
        (self.offset, self.start, self.stages, self.info) = (offset, offset, 0, None);
    }

    /// The next piece, as soon as there is one; none after the last.
    pub async fn next(&mut self) -> Result<Option<Piece>> {
        while !self.ended {
            if let Some(piece) = self.known().await? {
                return Ok(Some(piece));
            }
            if self.refresh().await? {
                continue;
            }
            if let Some(piece) = self.end().await? {
                return Ok(Some(piece));
            }
            tokio::select! {
                () = self.hints.changed() => {}
                () = tokio::time::sleep(self.logs.parts.look) => {}
            }
        }
        Ok(None)
    }

    /// A piece out of what is known already.
    async fn known(&mut self) -> Result<Option<Piece>> {
        let Some(info) = &self.info else { return Ok(None) };
        let next = self.stages_of(info).get(self.stages).cloned();
        if let Some(stage) = &next
            && stage.offset <= self.offset
        {
            self.stages += 1;
            let mut piece = self.piece(Bytes::new());
            piece.offset = stage.offset;
            piece.stage = next;
            return Ok(Some(piece));
        }
        if self.offset >= info.size {
            return Ok(None);
        }
        // Whole frames, so that a sealed log is unpacked once.
        let whole = FRAME - usize::try_from(self.offset % FRAME as u64).unwrap_or(0);
        let until = next.as_ref().map_or(u64::MAX, |stage| stage.offset - self.offset);
        let limit = whole.min(usize::try_from(until).unwrap_or(usize::MAX));
        let data = self.logs.read(info, self.offset, limit).await?;
        let mut piece = self.piece(data);
        self.offset += piece.data.len() as u64;
        piece.stage = next.filter(|stage| stage.offset == self.offset);
        self.stages += usize::from(piece.stage.is_some());
        Ok(Some(piece))
    }

    fn piece(&self, data: Bytes) -> Piece {
        let lease = self.lease.as_ref().map(|row| row.id);
        Piece { data, offset: self.offset, lease, ..Piece::default() }
    }

    /// Stages are marks in the main stream.
    fn stages_of<'a>(&self, info: &'a Info) -> &'a [Stage] {
        if self.stream == MAIN { &info.stages } else { &[] }
    }

    /// Looks again; true where something came.
    async fn refresh(&mut self) -> Result<bool> {
        let Some(lease) = &self.lease else {
            let first = self.logs.lease_of(self.job.job.id, None).await?;
            let found = first.is_some();
            if let Some(row) = first {
                self.turn_to(row, 0);
            }
            return Ok(found);
        };
        let lease = self.logs.lease(lease.id).await?;
        let info = self.logs.info(&lease, &self.stream).await?;
        let stages = self.stages_of(&info);
        let old = |stage: &&Stage| stage.offset < self.start;
        let skip = stages.iter().skip(self.stages).take_while(old).count();
        let next = stages.get(self.stages + skip);
        let came = info.size > self.offset || next.is_some_and(|s| s.offset <= self.offset);
        self.stages += skip;
        self.lease = Some(lease);
        self.info = Some(info);
        Ok(came)
    }

    /// All that is known was delivered: the last piece where this was all, or the next attempt.
    async fn end(&mut self) -> Result<Option<Piece>> {
        let mut truncated = false;
        if let (Some(lease), Some(info)) = (&self.lease, &self.info) {
            let phase = lease.phase;
            let over = info.complete || self.is_given_up(lease, info);
            truncated = !info.complete || info.truncated;
            let moves_on = !self.pinned && !phase.is_open() && (over || phase == LeasePhase::Void);
            if moves_on && self.next_attempt().await? || !over {
                return Ok(None);
            }
        }
        if !self.pinned && !self.logs.job(self.job.job.id).await?.job.status().is_done() {
            return Ok(None);
        }
        self.ended = true;
        let mut piece = self.piece(Bytes::new());
        (piece.complete, piece.truncated) = (true, truncated);
        Ok(Some(piece))
    }

    /// The rest may still come, but not soon.
    fn is_given_up(&self, lease: &LeaseRow, info: &Info) -> bool {
        match lease.phase {
            LeasePhase::Void => self.logs.is_late(lease, LOST),
            LeasePhase::Finished => self.is_silent(lease, info),
            LeasePhase::Leased | LeasePhase::Running => false,
        }
    }

    fn is_silent(&self, lease: &LeaseRow, info: &Info) -> bool {
        let silent = i64::try_from(SILENT.as_millis()).unwrap_or(i64::MAX);
        let grew = info.row.as_ref().is_none_or(|row| row.updated_at + silent < self.logs.now());
        grew && self.logs.is_late(lease, SILENT)
    }

    async fn next_attempt(&mut self) -> Result<bool> {
        let last = self.logs.lease_of(self.job.job.id, None).await?;
        let current = self.lease.as_ref().map(|row| row.id);
        match last {
            Some(row) if Some(row.id) != current => {
                self.turn_to(row, 0);
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
