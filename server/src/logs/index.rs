//! The index of the logs: which bytes of which stream are durable. A log's bytes count from the moment their row is
//! committed; the rows live in the server's database. The bytes themselves are a [`super::LogStore`]'s.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_core::{
    Millis,
    id::{BuildId, JobId, LeaseId},
};

use crate::store::Result;

/// A segment row does not grow beyond this many bytes: one row per MiB of a fast log, one growing row for a slow one.
pub const SEGMENT: u64 = 1 << 20;

/// A stream of a lease.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub lease: LeaseId,
    pub stream: String,
}

/// Whether bytes may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogState {
    Open,
    /// All bytes arrived.
    Complete,
    /// The end never arrived.
    Truncated,
}

impl LogState {
    pub const ALL: [Self; 3] = [Self::Open, Self::Complete, Self::Truncated];

    /// The word for it in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Complete => "complete",
            Self::Truncated => "truncated",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// One stream of one lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    pub key: Key,
    pub job: JobId,
    pub build: BuildId,
    /// Bytes that are durable.
    pub size: u64,
    /// CRC-32 (IEEE) of all of them.
    pub crc: u32,
    /// Where the part begins that is not stored for good yet: the segment that still grows, or the bytes held in rows.
    pub tail: u64,
    pub state: LogState,
    /// It is compressed; nothing of it changes any more.
    pub packed: bool,
    pub created_at: Millis,
    /// The last append, or the end.
    pub updated_at: Millis,
}

/// A run of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub start: u64,
    pub length: u64,
    pub crc: u32,
    /// The bytes, where no store holds them yet.
    pub data: Option<Bytes>,
}

impl Segment {
    pub const fn end(&self) -> u64 {
        self.start + self.length
    }
}

/// Where the bytes of an append are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the log's file: the last segment grows as far as [`SEGMENT`] allows.
    File,
    /// An object of their own.
    Object,
    /// In the row.
    Row(Bytes),
}

/// Bytes to be appended. They begin where the log ends, or they are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    pub key: Key,
    pub start: u64,
    pub length: u64,
    pub crc: u32,
    pub place: Place,
}

impl LogRow {
    /// The row after these bytes: size, checksum and tail.
    #[must_use]
    pub fn appended(mut self, append: &Append, now: Millis) -> Self {
        let end = self.size + append.length;
        self.tail = match append.place {
            Place::File if self.grows(append) => self.tail,
            Place::File => self.size,
            Place::Object => end,
            Place::Row(_) => self.tail,
        };
        self.crc = combine(self.crc, append.crc, append.length);
        self.size = end;
        self.updated_at = now;
        self
    }

    /// These bytes make the last segment longer instead of beginning a new one.
    pub fn grows(&self, append: &Append) -> bool {
        append.place == Place::File
            && self.size > self.tail
            && self.size - self.tail + append.length <= SEGMENT
    }
}

/// The checksum of two runs of bytes, one behind the other.
pub fn combine(first: u32, second: u32, second_length: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial_len(first, 0);
    hasher.combine(&crc32fast::Hasher::new_with_initial_len(second, second_length));
    hasher.finalize()
}

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// Durable; the row as it is now.
    Done(LogRow),
    /// The log ends elsewhere, or is closed: the row as it is.
    Refused(LogRow),
}

/// Where a part of a job begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    pub name: String,
    pub time: Millis,
    /// In the main stream.
    pub offset: u64,
}

/// The rows of the logs. Reads see committed rows only.
#[async_trait]
pub trait LogIndex: Debug + Send + Sync {
    /// The identity of the store called `name`: the one that is recorded, else `fresh`, which is recorded where given.
    async fn identity(&self, name: &str, fresh: Option<&str>) -> Result<Option<String>>;

    /// The log of this key; made as given where there is none.
    async fn open_log(&self, fresh: &LogRow) -> Result<LogRow>;
    async fn log(&self, key: &Key) -> Result<Option<LogRow>>;
    /// All logs of a lease by stream.
    async fn logs_of(&self, lease: LeaseId) -> Result<Vec<LogRow>>;
    /// Appends where the log is open and ends at `start`: all in one transaction, each answered by itself.
    async fn append(&self, appends: &[Append], now: Millis) -> Result<Vec<Appended>>;
    /// At most `limit` segments that end behind `offset`, in order.
    async fn segments(&self, key: &Key, offset: u64, limit: u32) -> Result<Vec<Segment>>;
    /// Puts one segment in the place of all that lie within it, and sets the tail; false where they don't add up to it.
    async fn replace(&self, key: &Key, segment: &Segment, tail: u64) -> Result<bool>;
    /// Ends an open log of this size; returns the row as it is then.
    async fn close_log(
        &self,
        key: &Key,
        size: u64,
        state: LogState,
        now: Millis,
    ) -> Result<Option<LogRow>>;
    /// Marks a closed log as compressed.
    async fn set_packed(&self, key: &Key) -> Result<()>;
    /// Logs behind `after` that are open or not compressed, by key.
    async fn unpacked(&self, after: Option<&Key>, limit: u32) -> Result<Vec<LogRow>>;
    /// Leases whose logs are all closed and were last changed before.
    async fn closed_before(&self, before: Millis, limit: u32) -> Result<Vec<LeaseId>>;
    /// Forgets the logs and stages of a lease.
    async fn delete_logs(&self, lease: LeaseId) -> Result<()>;

    /// Stages of a lease in the order of their report.
    async fn stages(&self, lease: LeaseId) -> Result<Vec<Stage>>;
    /// Records stage number `index` of a lease, counted from 0; where it is recorded already, nothing changes.
    async fn add_stage(&self, lease: LeaseId, index: u32, stage: &Stage) -> Result<()>;
}
