//! The journal's file: one record behind the other, each with its length and its checksum before it.

use std::{borrow::Cow, collections::BTreeMap};

use kiln_core::id::LeaseId;
use serde::{Deserialize, Serialize};

use crate::lease::{Entry, EntryState};

/// Length and CRC-32 of what follows.
const HEAD: usize = 8;

/// A change, or where it was written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "read and written one by one, never kept")]
pub(super) enum Record<'a> {
    /// The boot of the machine on which what follows is written.
    Boot(Cow<'a, str>),
    Entry(Cow<'a, Entry>),
    /// A lease whose entry is before it.
    State(LeaseId, Cow<'a, EntryState>),
    Gone(LeaseId),
}

impl Record<'_> {
    pub(super) fn write(&self, into: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let text = serde_json::to_vec(self)?;
        let length = u32::try_from(text.len()).map_err(serde::ser::Error::custom)?;
        into.extend(length.to_le_bytes());
        into.extend(crc32fast::hash(&text).to_le_bytes());
        into.extend(text);
        Ok(())
    }
}

/// What the records come to.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) boot: Option<String>,
    pub(super) entries: BTreeMap<LeaseId, Entry>,
    /// Bytes of whole records; what lies behind was never said to be durable.
    pub(super) whole: usize,
}

impl Content {
    /// Ends at the first record that is not whole: a crash may tear what was written last, and leave zeros there.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let mut content = Self::default();
        while let Some(text) = next(&bytes[content.whole..]) {
            content.take(serde_json::from_slice(text)?);
            content.whole += HEAD + text.len();
        }
        Ok(content)
    }

    fn take(&mut self, record: Record<'_>) {
        match record {
            Record::Boot(boot) => self.boot = Some(boot.into_owned()),
            Record::Entry(entry) => {
                self.entries.insert(entry.assignment.lease, entry.into_owned());
            }
            Record::State(lease, state) => {
                if let Some(entry) = self.entries.get_mut(&lease) {
                    entry.state = state.into_owned();
                }
            }
            Record::Gone(lease) => {
                self.entries.remove(&lease);
            }
        }
    }
}

fn next(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let text = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    (!text.is_empty() && crc32fast::hash(text) == u32::from_le_bytes(*crc)).then_some(text)
}
