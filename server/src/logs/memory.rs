//! The index in memory, for tests and the simulation.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use kiln_core::{Millis, id::LeaseId};

use super::index::{Append, Appended, Key, LogIndex, LogRow, LogState, Place, Segment, Stage};
use crate::store::Result;

#[derive(Debug, Default)]
struct Tables {
    identities: BTreeMap<String, String>,
    logs: BTreeMap<Key, LogRow>,
    segments: BTreeMap<(Key, u64), Segment>,
    stages: BTreeMap<(LeaseId, u32), Stage>,
}

/// Rows in memory.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    tables: Mutex<Tables>,
}

impl MemoryIndex {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn append(&mut self, append: &Append, now: Millis) -> Option<Appended> {
        let row = self.logs.get_mut(&append.key)?;
        if row.state != LogState::Open || row.size != append.start {
            return Some(Appended::Refused(row.clone()));
        }
        let (grows, tail) = (row.grows(append), row.tail);
        *row = row.clone().appended(append, now);
        if grows {
            let last = self.segments.get_mut(&(append.key.clone(), tail))?;
            last.crc = super::index::combine(last.crc, append.crc, append.length);
            last.length += append.length;
        } else {
            let data = match &append.place {
                Place::Row(bytes) => Some(bytes.clone()),
                Place::File | Place::Object => None,
            };
            let segment =
                Segment { start: append.start, length: append.length, crc: append.crc, data };
            self.segments.insert((append.key.clone(), append.start), segment);
        }
        Some(Appended::Done(self.logs[&append.key].clone()))
    }

    fn inside(&self, key: &Key, segment: &Segment) -> Vec<u64> {
        self.segments
            .range((key.clone(), segment.start)..(key.clone(), segment.end()))
            .map(|((_, start), _)| *start)
            .collect()
    }
}

#[async_trait]
impl LogIndex for MemoryIndex {
    async fn identity(&self, name: &str, fresh: Option<&str>) -> Result<Option<String>> {
        let mut tables = self.tables();
        if let Some(fresh) = fresh {
            tables.identities.entry(name.to_owned()).or_insert_with(|| fresh.to_owned());
        }
        Ok(tables.identities.get(name).cloned())
    }

    async fn open_log(&self, fresh: &LogRow) -> Result<LogRow> {
        let mut tables = self.tables();
        Ok(tables.logs.entry(fresh.key.clone()).or_insert_with(|| fresh.clone()).clone())
    }

    async fn log(&self, key: &Key) -> Result<Option<LogRow>> {
        Ok(self.tables().logs.get(key).cloned())
    }

    async fn logs_of(&self, lease: LeaseId) -> Result<Vec<LogRow>> {
        Ok(self.tables().logs.values().filter(|row| row.key.lease == lease).cloned().collect())
    }

    async fn append(&self, appends: &[Append], now: Millis) -> Result<Vec<Appended>> {
        let mut tables = self.tables();
        appends
            .iter()
            .map(|append| {
                tables.append(append, now).ok_or_else(|| crate::store::Error::Corrupt {
                    table: "logs",
                    column: "lease",
                    value: append.key.lease.to_string(),
                })
            })
            .collect()
    }

    async fn segments(&self, key: &Key, offset: u64, limit: u32) -> Result<Vec<Segment>> {
        let tables = self.tables();
        Ok(tables
            .segments
            .range((key.clone(), 0)..(key.clone(), u64::MAX))
            .map(|(_, segment)| segment)
            .filter(|segment| segment.end() > offset)
            .take(limit as usize)
            .cloned()
            .collect())
    }

    async fn replace(&self, key: &Key, segment: &Segment, tail: u64) -> Result<bool> {
        let mut tables = self.tables();
        let inside = tables.inside(key, segment);
        let sum: u64 =
            inside.iter().map(|start| tables.segments[&(key.clone(), *start)].length).sum();
        if sum != segment.length {
            return Ok(false);
        }
        for start in inside {
            tables.segments.remove(&(key.clone(), start));
        }
        tables.segments.insert((key.clone(), segment.start), segment.clone());
        if let Some(row) = tables.logs.get_mut(key) {
            row.tail = tail;
        }
        Ok(true)
    }

    async fn close_log(
        &self,
        key: &Key,
        size: u64,
        state: LogState,
        now: Millis,
    ) -> Result<Option<LogRow>> {
        let mut tables = self.tables();
        let row = tables.logs.get_mut(key);
        Ok(row.map(|row| {
            if row.state == LogState::Open && row.size == size {
                row.state = state;
                row.updated_at = now;
            }
            row.clone()
        }))
    }

    async fn set_packed(&self, key: &Key) -> Result<()> {
        if let Some(row) = self.tables().logs.get_mut(key) {
            row.packed = true;
        }
        Ok(())
    }

    async fn unpacked(&self, after: Option<&Key>, limit: u32) -> Result<Vec<LogRow>> {
        let tables = self.tables();
        let rows = tables.logs.values().filter(|row| !row.packed);
        Ok(rows
            .filter(|row| after.is_none_or(|after| row.key > *after))
            .take(limit as usize)
            .cloned()
            .collect())
    }

    async fn closed_before(&self, before: Millis, limit: u32) -> Result<Vec<LeaseId>> {
        let tables = self.tables();
        let mut leases: BTreeMap<LeaseId, bool> = BTreeMap::new();
        for row in tables.logs.values() {
            let over = row.state != LogState::Open && row.updated_at < before;
            *leases.entry(row.key.lease).or_insert(true) &= over;
        }
        Ok(leases
            .into_iter()
            .filter_map(|(lease, over)| over.then_some(lease))
            .take(limit as usize)
            .collect())
    }

    async fn delete_logs(&self, lease: LeaseId) -> Result<()> {
        let mut tables = self.tables();
        tables.logs.retain(|key, _| key.lease != lease);
        tables.segments.retain(|(key, _), _| key.lease != lease);
        tables.stages.retain(|(of, _), _| *of != lease);
        Ok(())
    }

    async fn stages(&self, lease: LeaseId) -> Result<Vec<Stage>> {
        let tables = self.tables();
        Ok(tables.stages.range((lease, 0)..=(lease, u32::MAX)).map(|(_, s)| s.clone()).collect())
    }

    async fn add_stage(&self, lease: LeaseId, index: u32, stage: &Stage) -> Result<()> {
        self.tables().stages.entry((lease, index)).or_insert_with(|| stage.clone());
        Ok(())
    }
}
