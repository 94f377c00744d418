//! What the tables hold, as the rest of the server sees it. Core types inside, nothing of the database.

use std::collections::BTreeMap;

use kiln_core::{
    Millis,
    agent::{Admission, Load, Profile},
    build::{BuildState, Counts},
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId, SecretId, SessionId, TokenId},
    job::Job,
    outcome::Outcome,
    session::{Artifact, LeaseFacts, LeasePhase},
    spec::JobSpec,
    trace::{self, Trace},
};
use uuid::Uuid;

/// A project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectRow {
    pub id: ProjectId,
    pub name: String,
    pub weight: u32,
    /// Leases at once; zero is no limit.
    pub max_running: u32,
    pub paused: bool,
    /// Open leases now.
    pub running: u32,
    pub created_at: Millis,
}

/// A build. Its state is never set: it is the fold of `counts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRow {
    pub id: BuildId,
    pub project: ProjectId,
    pub title: String,
    pub key: Option<String>,
    /// Hexadecimal SHA-256 of the submission, compared when the key is used again.
    pub digest: String,
    pub priority: i32,
    pub annotations: BTreeMap<String, String>,
    pub submitter: String,
    pub counts: Counts,
    /// Number of the last event.
    pub last_event: i64,
    pub created_at: Millis,
    pub finished_at: Option<Millis>,
}

impl BuildRow {
    pub fn state(&self) -> BuildState {
        self.counts.state()
    }

    /// Its place in a trace.
    pub fn trace(&self) -> Option<Trace> {
        self.annotations.get(trace::ANNOTATION)?.parse().ok()
    }
}

/// A job. The specification is a row of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    pub job: Job,
    pub project: ProjectId,
    /// Position in the submission.
    pub index: u32,
    pub name: String,
    pub backend: String,
    pub class: ClassId,
    /// Concurrency group.
    pub group: Option<Uuid>,
    pub priority: i32,
    pub allow_failure: bool,
    /// Needed jobs that are not done.
    pub open_needs: u32,
    /// Queued and not barred by its concurrency group. (`not_before`, pause and limit of the project are judged in the claim.)
    pub claimable: bool,
    /// Jobs of equal affinity find each other's caches warm.
    pub affinity: String,
    /// Agent of the last lease.
    pub agent: Option<AgentId>,
    /// Why the last lease came back unstarted.
    pub returned: Option<String>,
    pub started_at: Option<Millis>,
    pub finished_at: Option<Millis>,
    /// Grows with each save; a save of another version is a conflict.
    pub version: i64,
}

/// A job as Submit inserts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    pub row: JobRow,
    pub spec: JobSpec,
    /// Needed jobs, and whether their artifacts are placed.
    pub needs: Vec<(JobId, bool)>,
}

/// A concurrency group of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRow {
    pub id: Uuid,
    pub project: ProjectId,
    pub name: String,
    pub limit: u32,
}

/// A lease: one attempt of a job on one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    pub id: LeaseId,
    pub job: JobId,
    pub build: BuildId,
    pub project: ProjectId,
    pub agent: AgentId,
    /// The session that it was given in, or that last kept it.
    pub session: SessionId,
    pub backend: String,
    /// 1, 2, 3 … over all rounds of the job.
    pub attempt: u32,
    pub phase: LeasePhase,
    pub cancelling: bool,
    pub given_at: Millis,
    pub started_at: Option<Millis>,
    pub ended_at: Option<Millis>,
    /// How this attempt ended, where its report was taken.
    pub outcome: Option<Outcome>,
    /// Length of each stream of its log, as its report said.
    pub log_lengths: BTreeMap<String, u64>,
}

impl LeaseRow {
    pub fn facts(&self) -> LeaseFacts {
        LeaseFacts { lease: self.id, phase: self.phase, cancelling: self.cancelling }
    }
}

/// An artifact of a job's last taken report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactRow {
    pub job: JobId,
    pub build: BuildId,
    pub lease: LeaseId,
    pub artifact: Artifact,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRow {
    pub id: AgentId,
    pub name: String,
    pub credential_sha256: Vec<u8>,
    pub admission: Admission,
    pub profile: Profile,
    pub load: Load,
    pub created_at: Millis,
    /// Last heartbeat.
    pub seen_at: Millis,
    /// Grows with each Hello.
    pub epoch: i64,
    pub certificate: Option<AgentCertificate>,
}

/// Which certificate an agent must present where TLS is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCertificate {
    /// Of its key, as the certificate holds it.
    pub public_key_sha256: Vec<u8>,
    pub ends_at: Millis,
}

/// An authority that signs certificates. The newest signs; the older ones are trusted for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityRow {
    /// From 1 on.
    pub generation: i64,
    /// Its own certificate, in DER.
    pub certificate: Vec<u8>,
    /// The same key, certified by the authority before: who trusts that one trusts this one.
    pub bridge: Option<Vec<u8>>,
    /// Id of the key of secrets that encrypts the signing key.
    pub key: String,
    /// The signing key, encrypted.
    pub sealed: Vec<u8>,
    pub created_at: Millis,
    /// Until when it is trusted after a newer one has taken its place.
    pub trusted_until: Option<Millis>,
}

/// An agent that was evicted. Its credential still says who asks, and lets it do nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvictedAgentRow {
    pub id: AgentId,
    pub name: String,
    pub credential_sha256: Vec<u8>,
    pub evicted_at: Millis,
}

/// One stream of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    pub id: SessionId,
    pub agent: AgentId,
    /// A random id of the agent's process.
    pub instance: String,
    pub epoch: i64,
    /// Raised by each heartbeat.
    pub beat: i64,
    pub open: bool,
    pub opened_at: Millis,
}

/// What a bearer token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Reader,
    Submitter,
    Admin,
    /// Enrols one agent.
    Enroller,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Reader, Self::Submitter, Self::Admin, Self::Enroller];

    /// The word for it in the database and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Submitter => "submitter",
            Self::Admin => "admin",
            Self::Enroller => "enroller",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }
}

/// A bearer token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    pub id: TokenId,
    pub name: String,
    pub role: Role,
    pub project: Option<ProjectId>,
    pub secret_sha256: Vec<u8>,
    pub created_at: Millis,
    pub expires_at: Option<Millis>,
    /// The agent that an enroller token made, and when.
    pub used: Option<(AgentId, Millis)>,
    /// Within about a minute.
    pub last_used_at: Option<Millis>,
    /// Digest of the secret before the last rotation, and until when it is still taken.
    pub old_secret: Option<(Vec<u8>, Millis)>,
}

/// One value of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRow {
    pub id: SecretId,
    pub project: ProjectId,
    /// It is given to the jobs of this build alone.
    pub build: Option<BuildId>,
    pub name: String,
    /// Bytes of the value.
    pub size: u32,
    /// Id of the key that encrypts it.
    pub key: String,
    /// The value, encrypted.
    pub sealed: Vec<u8>,
    pub set_at: Millis,
    pub set_by: String,
    /// Since when another value has taken its place, or it is deleted. It stays for the leases that were given it.
    pub ended_at: Option<Millis>,
}

/// A lease was given this value, and gets it again with each Welcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantRow {
    pub lease: LeaseId,
    pub name: String,
    pub secret: SecretId,
}

/// Which builds a list wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildFilter {
    pub project: Option<ProjectId>,
    pub states: Vec<BuildState>,
    pub created_from: Option<Millis>,
    pub created_until: Option<Millis>,
    pub title_contains: String,
    pub oldest_first: bool,
}

/// Counts of a project's jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRow {
    pub project: ProjectId,
    pub queued: u32,
    /// Open leases.
    pub running: u32,
    pub oldest: Option<Millis>,
}

/// What a queued job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// An agent that can run it and has room.
    Slot,
    /// The end of its backoff.
    Backoff,
    /// Its concurrency group.
    Group,
    /// Its project, which is paused or at its limit.
    Project,
}

impl Wait {
    pub const ALL: [Self; 4] = [Self::Slot, Self::Backoff, Self::Group, Self::Project];

    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Slot => "slot",
            Self::Backoff => "backoff",
            Self::Group => "group",
            Self::Project => "project",
        }
    }
}

/// Queued jobs of a project that wait for the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depth {
    pub project: ProjectId,
    pub wait: Wait,
    pub jobs: u64,
    /// Since when the oldest of them is queued.
    pub oldest: Millis,
}

/// How much there is of everything that comes and goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    /// By project and what is waited for.
    pub queue: Vec<Depth>,
    /// Open leases that have not started, and those that have.
    pub leased: u64,
    pub running: u64,
    /// Open sessions.
    pub sessions: u64,
}
