//! The store in memory, for the simulation and for tests: maps of rows, one write transaction at a time.
//!
//! A transaction works on its own copy of the tables that it touches (copy on write) and publishes them at commit;
//! dropped, it leaves no trace. Needs no runtime clock and does no I/O.

mod expire;
mod queue;
mod read;
mod secrets;
mod write;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use kiln_core::{
    Millis,
    event::Record,
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId, SecretId, SessionId, TokenId},
    job::Status,
    schedule::Class,
    spec::JobSpec,
};
use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

use super::{
    AgentRow, ArtifactRow, AuditRow, AuthorityRow, BuildRow, Error, EvictedAgentRow, GrantRow,
    GroupRow, JobRow, LeaseRow, ProjectRow, Result, SecretRow, SessionRow, TokenRow,
};

/// Shared until it is written to.
type Table<K, V> = Arc<BTreeMap<K, Arc<V>>>;

/// All rows.
#[derive(Debug, Clone, Default)]
struct State {
    projects: Table<ProjectId, ProjectRow>,
    builds: Table<BuildId, BuildRow>,
    keys: Table<(ProjectId, String), BuildId>,
    jobs: Table<JobId, JobRow>,
    specs: Table<JobId, JobSpec>,
    /// Jobs of a build by index.
    build_jobs: Table<BuildId, Vec<JobId>>,
    /// (job, needed, place its artifacts)
    needs: Table<BuildId, Vec<(JobId, JobId, bool)>>,
    events: Table<BuildId, Vec<Record>>,
    classes: Table<ClassId, Class>,
    groups: Table<Uuid, GroupRow>,
    leases: Table<LeaseId, LeaseRow>,
    artifacts: Table<JobId, Vec<ArtifactRow>>,
    affinities: Table<String, (AgentId, Millis)>,
    agents: Table<AgentId, AgentRow>,
    evicted_agents: Table<AgentId, EvictedAgentRow>,
    sessions: Table<SessionId, SessionRow>,
    tokens: Table<TokenId, TokenRow>,
    audit: Table<i64, AuditRow>,
    secrets: Table<SecretId, SecretRow>,
    grants: Table<(LeaseId, String), GrantRow>,
    authorities: Table<i64, AuthorityRow>,
}

/// The store in memory. Cheap to clone: clones share the rows.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    committed: Arc<RwLock<State>>,
    writer: Arc<Mutex<()>>,
    failures: Arc<AtomicU32>,
    losses: Arc<AtomicU32>,
}

/// One write transaction.
#[derive(Debug)]
struct MemoryTx {
    state: State,
    store: Memory,
    _writer: OwnedMutexGuard<()>,
}

impl Memory {
    /// The next `n` commits fail and change nothing, as a database does that goes away.
    pub fn fail_next_commit(&self, n: u32) {
        self.failures.store(n, Ordering::SeqCst);
    }

    /// The next `n` commits lose against a transaction that nobody sees, and change nothing.
    pub fn lose_next_commits(&self, n: u32) {
        self.losses.store(n, Ordering::SeqCst);
    }

    /// What is committed now: one reference count a table.
    fn snapshot(&self) -> State {
        self.committed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn open(&self) -> MemoryTx {
        let writer = Arc::clone(&self.writer).lock_owned().await;
        MemoryTx { state: self.snapshot(), store: self.clone(), _writer: writer }
    }
}

impl MemoryTx {
    fn publish(self) -> Result<()> {
        let injected = |left: &AtomicU32| {
            left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .is_ok()
        };
        if injected(&self.store.losses) {
            return Err(Error::Conflict);
        }
        if injected(&self.store.failures) {
            return Err(Error::Database {
                action: "commit",
                source: "a failure was injected".into(),
            });
        }
        *self.store.committed.write().unwrap_or_else(PoisonError::into_inner) = self.state;
        Ok(())
    }
}

impl State {
    fn jobs_of(&self, build: BuildId) -> Vec<JobRow> {
        let ids = self.build_jobs.get(&build).map(|ids| ids.as_slice()).unwrap_or_default();
        rows(&self.jobs, ids)
    }

    fn edges(&self, build: BuildId) -> &[(JobId, JobId, bool)] {
        self.needs.get(&build).map(|needs| needs.as_slice()).unwrap_or_default()
    }

    /// Queued, leased or running jobs of a group, by id.
    fn members(&self, group: Uuid) -> impl Iterator<Item = &JobRow> {
        self.jobs
            .values()
            .map(Arc::as_ref)
            .filter(move |row| row.group == Some(group) && (is_queued(row) || is_open(row)))
    }
}

fn is_queued(row: &JobRow) -> bool {
    row.job.status() == Status::Queued
}

fn is_open(row: &JobRow) -> bool {
    row.job.open_lease().is_some()
}

/// One row, copied.
fn row<K: Ord, V: Clone>(table: &Table<K, V>, key: &K) -> Option<V> {
    table.get(key).map(|row| V::clone(row))
}

/// Those of the rows that exist, copied, in the order of the keys given.
fn rows<K: Ord, V: Clone>(table: &Table<K, V>, keys: &[K]) -> Vec<V> {
    keys.iter().filter_map(|key| row(table, key)).collect()
}

/// All rows, copied, by key.
fn all<K: Ord, V: Clone>(table: &Table<K, V>) -> Vec<V> {
    table.values().map(|row| V::clone(row)).collect()
}

fn put<K: Ord + Clone, V: Clone>(table: &mut Table<K, V>, key: K, value: V) {
    Arc::make_mut(table).insert(key, Arc::new(value));
}

/// The row of this key to be changed, made where there is none.
fn entry<K: Ord + Clone, V: Clone + Default>(table: &mut Table<K, V>, key: K) -> &mut V {
    Arc::make_mut(Arc::make_mut(table).entry(key).or_default())
}

fn sorted<T: Ord + Copy>(keys: &[T]) -> Vec<T> {
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    keys.dedup();
    keys
}
