//! Logs as objects, for several replicas: full segments are objects, the tail below one segment is rows.
//!
//! An object is one zstd frame. Its name says start, length and checksum, so that two replicas that flush the same
//! tail write the same object or different ones, never different bytes under one name. What a crash leaves without a
//! row is collected when the log is sealed.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path};

use super::{
    Error, LogStore, Result,
    index::{Key, LogIndex, LogRow, Place, SEGMENT, Segment},
};
use crate::uploads::{blocking, object_identity};

/// An append of this size becomes an object at once, where no tail is in its way.
const DIRECT: usize = 512 << 10;
/// Small rows of a tail that are merged into one: a chatty job must not leave a row a line.
const MERGE: u32 = 32;
/// A row of this size is not merged any more, so that merging costs little.
const MERGED: u64 = 32 << 10;
/// Unpacked objects that are kept, as a follower reads each in several pieces.
const CACHED: usize = 8;
const LEVEL: i32 = 1;

/// Logs in a bucket or a shared folder.
#[derive(Debug)]
pub struct ObjectLogs {
    objects: Arc<dyn ObjectStore>,
    root: Path,
    index: Arc<dyn LogIndex>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Rows appended to a tail since it was merged. Forgotten by a restart, which costs nothing.
    rows: HashMap<Key, u32>,
    cache: VecDeque<(Path, Bytes)>,
}

impl ObjectLogs {
    /// The store under this path. Refused where it is another database's.
    pub async fn open(
        objects: Arc<dyn ObjectStore>,
        root: Path,
        index: Arc<dyn LogIndex>,
        fresh: &str,
    ) -> Result<Self> {
        let recorded = index.identity("logs", None).await?;
        let fresh_here = recorded.is_none().then_some(fresh);
        let found = object_identity(objects.as_ref(), &root, fresh_here).await?;
        let recorded = match recorded {
            Some(recorded) => recorded,
            None => index.identity("logs", Some(&found)).await?.unwrap_or_default(),
        };
        if found != recorded {
            return Err(Error::Foreign { name: "log", found, recorded });
        }
        Ok(Self { objects, root, index, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self, row: &LogRow) -> Path {
        self.root.clone().join(row.key.lease.uuid().simple().to_string())
    }

    fn object(&self, key: &Key, start: u64, length: u64, crc: u32) -> Path {
        self.root
            .clone()
            .join(key.lease.uuid().simple().to_string())
            .join(key.stream.as_str())
            .join(format!("{start:016}-{length}-{crc:08x}"))
    }

    /// Stores a segment under its name, where it is not there yet.
    async fn put(&self, key: &Key, start: u64, raw: Bytes) -> Result<Segment> {
        let (length, crc) = (raw.len() as u64, crc32fast::hash(&raw));
        let path = self.object(key, start, length, crc);
        let packed = blocking(move || {
            zstd::bulk::compress(&raw, LEVEL).map_err(|e| Error::io("compress", "a segment", e))
        })
        .await?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.objects.put_opts(&path, packed.into(), options).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {
                Ok(Segment { start, length, crc, data: None })
            }
            Err(e) => Err(Error::object("write", &path, e)),
        }
    }

    async fn get(&self, key: &Key, segment: &Segment) -> Result<Bytes> {
        if let Some(data) = &segment.data {
            return Ok(data.clone());
        }
        let path = self.object(key, segment.start, segment.length, segment.crc);
        let cached = self.state().cache.iter().find(|(at, _)| *at == path).map(|(_, b)| b.clone());
        if let Some(bytes) = cached {
            return Ok(bytes);
        }
        let read = async { self.objects.get(&path).await?.bytes().await };
        let packed = read.await.map_err(|e| Error::object("read", &path, e))?;
        let (length, crc, what) = (segment.length, segment.crc, path.to_string());
        let bytes = blocking(move || {
            let raw = zstd::bulk::decompress(&packed, usize::try_from(length).unwrap_or(0))
                .map_err(|e| Error::io("unpack", &what, e))?;
            if crc32fast::hash(&raw) == crc {
                Ok(Bytes::from(raw))
            } else {
                Err(Error::Corrupt { what })
            }
        })
        .await?;
        let mut state = self.state();
        state.cache.truncate(CACHED - 1);
        state.cache.push_front((path, bytes.clone()));
        Ok(bytes)
    }

    /// The rows of the tail and the bytes in them.
    async fn tail(&self, row: &LogRow) -> Result<Vec<Segment>> {
        let rows = self.index.segments(&row.key, row.tail, u32::MAX >> 1).await?;
        Ok(rows.into_iter().filter(|segment| segment.start >= row.tail).collect())
    }

    /// Makes the tail an object. Another replica may have done it, or appended: then nothing happens here.
    async fn flush(&self, row: &LogRow) -> Result<()> {
        let rows = self.tail(row).await?;
        let bytes = join(&rows);
        if bytes.is_empty() {
            return Ok(());
        }
        let segment = self.put(&row.key, row.tail, bytes).await?;
        self.index.replace(&row.key, &segment, segment.end()).await?;
        Ok(())
    }

    /// Makes the small rows at the end of the tail one row.
    async fn merge(&self, row: &LogRow) -> Result<()> {
        let rows = self.tail(row).await?;
        let large = rows.iter().rposition(|segment| segment.length >= MERGED);
        let small = &rows[large.map_or(0, |at| at + 1)..];
        let [first, _, ..] = small else { return Ok(()) };
        let bytes = join(small);
        let segment = Segment {
            start: first.start,
            length: bytes.len() as u64,
            crc: crc32fast::hash(&bytes),
            data: Some(bytes),
        };
        self.index.replace(&row.key, &segment, row.tail).await?;
        Ok(())
    }

    /// Removes objects that no row names.
    async fn collect(&self, row: &LogRow) -> Result<()> {
        let rows = self.index.segments(&row.key, 0, u32::MAX >> 1).await?;
        let known: BTreeSet<Path> =
            rows.iter().map(|s| self.object(&row.key, s.start, s.length, s.crc)).collect();
        let prefix = self.lease(row).join(row.key.stream.as_str());
        let list = self.objects.list(Some(&prefix)).map_ok(|meta| meta.location);
        let found: Vec<Path> =
            list.try_collect().await.map_err(|e| Error::object("list", &prefix, e))?;
        for path in found.iter().filter(|path| !known.contains(path)) {
            self.objects.delete(path).await.map_err(|e| Error::object("remove", path, e))?;
        }
        Ok(())
    }
}

#[async_trait]
impl LogStore for ObjectLogs {
    async fn check(&self, _row: &LogRow) -> Result<()> {
        Ok(())
    }

    async fn write(&self, row: &LogRow, bytes: &[Bytes]) -> Result<Place> {
        let mut joined = BytesMut::new();
        for piece in bytes {
            joined.extend_from_slice(piece);
        }
        let joined = joined.freeze();
        if row.tail == row.size && joined.len() >= DIRECT {
            self.put(&row.key, row.size, joined).await?;
            return Ok(Place::Object);
        }
        Ok(Place::Row(joined))
    }

    async fn settle(&self, row: &LogRow) -> Result<()> {
        if row.size - row.tail >= SEGMENT {
            self.state().rows.remove(&row.key);
            return self.flush(row).await;
        }
        let due = {
            let mut state = self.state();
            let rows = state.rows.entry(row.key.clone()).or_default();
            *rows += 1;
            let due = *rows >= MERGE;
            if due {
                state.rows.remove(&row.key);
            }
            due
        };
        if due { self.merge(row).await } else { Ok(()) }
    }

    async fn read(&self, row: &LogRow, offset: u64, limit: usize) -> Result<Bytes> {
        let end = row.size.min(offset.saturating_add(limit as u64));
        let mut out = BytesMut::new();
        let mut at = offset;
        while at < end {
            let segments = self.index.segments(&row.key, at, 4).await?;
            let before = at;
            for segment in segments.iter().filter(|segment| segment.start < end) {
                let bytes = self.get(&row.key, segment).await?;
                let from = usize::try_from(at - segment.start).unwrap_or(usize::MAX);
                let until = usize::try_from(end.min(segment.end()) - segment.start).unwrap_or(0);
                let piece = bytes.get(from..until).ok_or_else(|| corrupt(&row.key))?;
                out.extend_from_slice(piece);
                at += piece.len() as u64;
            }
            if at == before {
                return Err(corrupt(&row.key));
            }
        }
        Ok(out.freeze())
    }

    async fn pack(&self, row: &LogRow) -> Result<()> {
        self.state().rows.remove(&row.key);
        self.flush(row).await?;
        self.collect(row).await?;
        self.index.set_packed(&row.key).await?;
        Ok(())
    }

    async fn delete(&self, rows: &[LogRow]) -> Result<()> {
        for prefix in rows.iter().map(|row| self.lease(row)).collect::<BTreeSet<_>>() {
            let list = self.objects.list(Some(&prefix)).map_ok(|meta| meta.location).boxed();
            let removed = self.objects.delete_stream(list);
            removed
                .try_for_each(|_| async { Ok(()) })
                .await
                .map_err(|e| Error::object("remove", &prefix, e))?;
        }
        Ok(())
    }
}

fn corrupt(key: &Key) -> Error {
    Error::Corrupt { what: format!("{} {}", key.lease, key.stream) }
}

fn join(rows: &[Segment]) -> Bytes {
    let mut bytes = BytesMut::new();
    rows.iter().filter_map(|row| row.data.as_ref()).for_each(|data| bytes.extend_from_slice(data));
    bytes.freeze()
}
