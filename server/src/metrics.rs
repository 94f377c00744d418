//! What a server counts and measures, and its text for Prometheus. docs/monitoring.md lists it all, and a test keeps it
//! so.
//!
//! What is a row is not counted here: how much waits, runs and is connected is asked when the page is read (`store::Census`),
//! so that it is right on every replica and after a restart.

mod page;

use std::{sync::Arc, time::Duration};

use kiln_core::{Millis, outcome::Outcome, session::LeasePhase};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::store::{LeaseRow, jobs::Moved};

pub use page::Now;

type Label = [(&'static str, &'static str); 1];
type Counts = Family<Label, Counter>;
type Times = Family<Label, Histogram, fn() -> Histogram>;

/// How a lease can end that has no outcome: its agent gave it back, or was lost.
const RETURNED: &str = "returned";
const LOST: &str = "lost";
const OUTCOMES: [&str; 8] =
    ["succeeded", "cancelled", "user", "infra", "timeout", "stalled", "oom", LOST];
/// Why calls are refused: no or a wrong credential, one that is not enough, too many calls.
const REFUSALS: [&str; 3] = ["credential", "permission", "limit"];

/// What one process counts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    queue_wait: Histogram,
    start_wait: Histogram,
    run: Histogram,
    leases_ended: Counts,
    submissions: Counts,
    commit_group: Histogram,
    database: Times,
    log_taken: Counter,
    log_served: Counter,
    uploads: Counter,
    uploaded: Counter,
    downloaded: Counter,
    refused_calls: Counts,
    refused_connections: Counter,
    secrets_delivered: Counter,
    sweeps: Counts,
    sweep: Histogram,
    lost_sessions: Counter,
    repaired_builds: Counter,
}

/// From a claim that waits for nothing to a job that waits for a day.
fn waits() -> Histogram {
    let bounds = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0, 86_400.0];
    Histogram::new(bounds)
}

/// From a read in memory to the bound on an answer.
fn statements() -> Histogram {
    Histogram::new([0.0001, 0.0005, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0, 5.0, 30.0])
}

fn group_sizes() -> Histogram {
    Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut inner = Inner {
            registry: Registry::with_prefix("kiln"),
            queue_wait: waits(),
            start_wait: waits(),
            run: waits(),
            leases_ended: Counts::default(),
            submissions: Counts::default(),
            commit_group: group_sizes(),
            database: Times::new_with_constructor(statements),
            log_taken: Counter::default(),
            log_served: Counter::default(),
            uploads: Counter::default(),
            uploaded: Counter::default(),
            downloaded: Counter::default(),
            refused_calls: Counts::default(),
            refused_connections: Counter::default(),
            secrets_delivered: Counter::default(),
            sweeps: Counts::default(),
            sweep: statements(),
            lost_sessions: Counter::default(),
            repaired_builds: Counter::default(),
        };
        inner.begin();
        inner.register_jobs();
        inner.register_machinery();
        Self(Arc::new(inner))
    }
}

impl Inner {
    /// A counter that is not there yet has no rate when it comes.
    fn begin(&self) {
        for outcome in OUTCOMES.into_iter().chain([RETURNED]) {
            drop(self.leases_ended.get_or_create(&[("outcome", outcome)]));
        }
        for reason in REFUSALS {
            drop(self.refused_calls.get_or_create(&[("reason", reason)]));
        }
        for result in ["created", "known", "refused"] {
            drop(self.submissions.get_or_create(&[("result", result)]));
        }
        for operation in ["query", "execute", "begin", "commit"] {
            drop(self.database.get_or_create(&[("operation", operation)]));
        }
        for result in ["ok", "failed"] {
            drop(self.sweeps.get_or_create(&[("result", result)]));
        }
    }

    fn register_jobs(&mut self) {
        let Self { registry, queue_wait, start_wait, run, leases_ended, submissions, .. } = self;
        let help = "From queued, or from the end of a backoff, to leased";
        registry.register_with_unit("queue_wait", help, Unit::Seconds, queue_wait.clone());
        let help = "From leased to started on the agent";
        registry.register_with_unit("start_wait", help, Unit::Seconds, start_wait.clone());
        let help = "From started to the end of the lease";
        registry.register_with_unit("run", help, Unit::Seconds, run.clone());
        let help = "Leases that ended, by outcome";
        registry.register("leases_ended", help, leases_ended.clone());
        registry.register(
            "submissions",
            "Submissions, by what became of them",
            submissions.clone(),
        );
    }

    fn register_machinery(&mut self) {
        let registry = &mut self.registry;
        let help = "Commands that shared one transaction";
        registry.register("commit_group_size", help, self.commit_group.clone());
        let help = "Answers of the database, the wait for a connection included";
        registry.register_with_unit("database", help, Unit::Seconds, self.database.clone());
        let help = "Bytes of logs that agents pushed and that are durable";
        registry.register_with_unit("log_taken", help, Unit::Bytes, self.log_taken.clone());
        let help = "Bytes of logs that were read and followed";
        registry.register_with_unit("log_served", help, Unit::Bytes, self.log_served.clone());
        registry.register(
            "uploads",
            "Artifacts and sources that were stored",
            self.uploads.clone(),
        );
        let help = "Bytes of artifacts and sources that were taken";
        registry.register_with_unit("uploaded", help, Unit::Bytes, self.uploaded.clone());
        let help = "Bytes of artifacts and sources that were fetched";
        registry.register_with_unit("downloaded", help, Unit::Bytes, self.downloaded.clone());
        let help = "Calls that were refused, by reason";
        registry.register("refused_calls", help, self.refused_calls.clone());
        let help = "Connections that were turned away, as there were too many";
        registry.register("refused_connections", help, self.refused_connections.clone());
        let help = "Values of secrets that leases were given";
        registry.register("secrets_delivered", help, self.secrets_delivered.clone());
        registry.register("sweeps", "Rounds of the reaper, by result", self.sweeps.clone());
        let help = "Time of one round of the reaper";
        registry.register_with_unit("sweep", help, Unit::Seconds, self.sweep.clone());
        let help = "Sessions that this reaper has found silent for the grace time";
        registry.register("lost_sessions", help, self.lost_sessions.clone());
        let help = "Builds whose counts differed from their jobs, and were repaired";
        registry.register("repaired_builds", help, self.repaired_builds.clone());
    }
}

fn seconds(from: Millis, to: Millis) -> f64 {
    let wait = u64::try_from(to.saturating_sub(from)).unwrap_or_default();
    Duration::from_millis(wait).as_secs_f64()
}

/// How a lease ended, in a word.
fn outcome(lease: &LeaseRow) -> &'static str {
    match &lease.outcome {
        Some(Outcome::Succeeded) => "succeeded",
        Some(Outcome::Cancelled { .. }) => "cancelled",
        Some(Outcome::Failed { kind, .. }) => kind.as_str(),
        None if lease.started_at.is_some() => LOST,
        None => RETURNED,
    }
}

impl Metrics {
    /// Leases began, started or ended.
    pub(crate) fn moved(&self, moved: &[Moved]) {
        for Moved { lease, since, .. } in moved {
            match lease.phase {
                LeasePhase::Leased => {
                    self.0.queue_wait.observe(seconds(*since, lease.given_at));
                }
                LeasePhase::Running => {
                    let at = lease.started_at.unwrap_or(*since);
                    self.0.start_wait.observe(seconds(*since, at));
                }
                LeasePhase::Finished | LeasePhase::Void => {
                    self.0.leases_ended.get_or_create(&[("outcome", outcome(lease))]).inc();
                    if let (Some(from), Some(to)) = (lease.started_at, lease.ended_at) {
                        self.0.run.observe(seconds(from, to));
                    }
                }
            }
        }
    }

    /// A submission came to this.
    pub(crate) fn submitted(&self, result: &'static str) {
        self.0.submissions.get_or_create(&[("result", result)]).inc();
    }

    /// So many commands shared a transaction.
    pub(crate) fn committed(&self, commands: usize) {
        let commands = u32::try_from(commands).unwrap_or(u32::MAX);
        self.0.commit_group.observe(f64::from(commands));
    }

    /// The database took so long.
    pub(crate) fn answered(&self, operation: &'static str, took: Duration) {
        self.0.database.get_or_create(&[("operation", operation)]).observe(took.as_secs_f64());
    }

    pub(crate) fn log_taken(&self, bytes: u64) {
        self.0.log_taken.inc_by(bytes);
    }

    pub(crate) fn log_served(&self, bytes: usize) {
        self.0.log_served.inc_by(bytes as u64);
    }

    /// Bytes of an upload, and whether it is stored with them.
    pub(crate) fn uploaded(&self, bytes: usize, stored: bool) {
        self.0.uploaded.inc_by(bytes as u64);
        self.0.uploads.inc_by(u64::from(stored));
    }

    pub(crate) fn downloaded(&self, bytes: usize) {
        self.0.downloaded.inc_by(bytes as u64);
    }

    /// A call was answered with this code.
    pub(crate) fn refused(&self, code: tonic::Code) {
        let [credential, permission, limit] = REFUSALS;
        let reason = match code {
            tonic::Code::Unauthenticated => credential,
            tonic::Code::PermissionDenied => permission,
            tonic::Code::ResourceExhausted => limit,
            _ => return,
        };
        self.0.refused_calls.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn turned_away(&self) {
        self.0.refused_connections.inc();
    }

    pub(crate) fn secrets_delivered(&self, values: usize) {
        self.0.secrets_delivered.inc_by(values as u64);
    }

    /// A round of the reaper ended.
    pub(crate) fn swept(&self, ok: bool, took: Duration) {
        self.0.sweeps.get_or_create(&[("result", if ok { "ok" } else { "failed" })]).inc();
        self.0.sweep.observe(took.as_secs_f64());
    }

    pub(crate) fn session_lost(&self) {
        self.0.lost_sessions.inc();
    }

    pub(crate) fn build_repaired(&self) {
        self.0.repaired_builds.inc();
    }
}
