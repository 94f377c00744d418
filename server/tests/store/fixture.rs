//! Stores to test on, and rows to put into them.

use std::{collections::BTreeMap, sync::Arc};

use kiln_core::{
    Millis,
    build::Counts,
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId, SessionId},
    job::{Job, State},
    outcome::RetryPolicy,
    schedule::Class,
    session::LeasePhase,
    spec::JobSpec,
};
use kiln_server::store::{
    BuildRow, JobRow, LeaseRow, NewJob, ProjectRow, SharedStore,
    memory::Memory,
    sql::{Options, Sql, connect},
};
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Memory,
    Sqlite,
    Postgres,
}

/// A fresh store.
pub(crate) struct Made {
    pub(crate) store: SharedStore,
    /// The same, where it is a database.
    pub(crate) sql: Option<Sql>,
    pub(crate) url: String,
}

/// What a test leaves to be removed.
pub(crate) struct Ended {
    sql: Option<Sql>,
    _folder: Option<tempfile::TempDir>,
    database: Option<(String, String)>,
}

impl Ended {
    pub(crate) async fn clean(self) {
        if let Some(sql) = self.sql {
            sql.close().await;
        }
        if let Some((url, name)) = self.database {
            administer(&url, &format!("DROP DATABASE \"{name}\" WITH (FORCE)")).await;
        }
    }
}

pub(crate) async fn administer(url: &str, statement: &str) {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    let work = async {
        client.batch_execute(statement).await.unwrap();
        drop(client);
    };
    let ((), ended) = tokio::join!(work, connection);
    ended.unwrap();
}

pub(crate) async fn make(kind: Kind) -> Option<(Made, Ended)> {
    match kind {
        Kind::Memory => {
            let made = Made { store: Arc::new(Memory::default()), sql: None, url: String::new() };
            Some((made, Ended { sql: None, _folder: None, database: None }))
        }
        Kind::Sqlite => {
            let folder = tempfile::tempdir().unwrap();
            let url = format!("sqlite:{}", folder.path().join("kiln.db").display());
            let made = open(url).await;
            let sql = made.sql.clone();
            Some((made, Ended { sql, _folder: Some(folder), database: None }))
        }
        Kind::Postgres => {
            let Ok(admin) = std::env::var("KILN_TEST_POSTGRES") else {
                let required = std::env::var("KILN_TEST_REQUIRE").is_ok_and(|value| value == "1");
                assert!(!required, "KILN_TEST_POSTGRES is not set, but KILN_TEST_REQUIRE=1");
                println!("skipped: KILN_TEST_POSTGRES is not set");
                return None;
            };
            let name = format!("kiln_test_{}", Uuid::now_v7().simple());
            administer(&admin, &format!("CREATE DATABASE \"{name}\"")).await;
            let made = open(with_database(&admin, &name)).await;
            let sql = made.sql.clone();
            Some((made, Ended { sql, _folder: None, database: Some((admin, name)) }))
        }
    }
}

/// The URL with another database in its path.
fn with_database(url: &str, name: &str) -> String {
    let (before, query) = url.split_once('?').unwrap_or((url, ""));
    let (scheme, rest) = before.split_once("://").unwrap();
    let host = rest.split('/').next().unwrap();
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    format!("{scheme}://{host}/{name}{query}")
}

async fn open(url: String) -> Made {
    let sql = connect(&url, &Options::default()).await.unwrap();
    sql.migrate().await.unwrap();
    Made { store: Arc::new(sql.clone()), sql: Some(sql), url }
}

pub(crate) fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

pub(crate) fn project(n: u128) -> ProjectRow {
    ProjectRow {
        id: ProjectId::from_uuid(uuid(n)),
        name: format!("project-{n}"),
        weight: 1,
        max_running: 0,
        paused: false,
        running: 0,
        created_at: 1_000,
    }
}

pub(crate) fn build(n: u128, of: &ProjectRow) -> BuildRow {
    BuildRow {
        id: BuildId::from_uuid(uuid(n)),
        project: of.id,
        title: format!("build {n}"),
        key: None,
        digest: "d".repeat(64),
        priority: 0,
        annotations: BTreeMap::new(),
        submitter: "someone".to_owned(),
        counts: Counts::default(),
        last_event: 0,
        created_at: 1_000 + Millis::try_from(n % 1_000_000).unwrap(),
        finished_at: None,
    }
}

pub(crate) fn class() -> (ClassId, Class) {
    let class = Class {
        backend: "shell".to_owned(),
        operation: "script".to_owned(),
        constraints: kiln_core::spec::Constraints::default(),
        features: ["x".to_owned()].into(),
    };
    (ClassId::from_uuid(uuid(900)), class)
}

/// A queued job that may be leased.
pub(crate) fn job(n: u128, index: u32, of: &BuildRow) -> JobRow {
    JobRow {
        job: Job {
            id: JobId::from_uuid(uuid(n)),
            build: of.id,
            state: State::Queued { not_before: 1_000 },
            round: 1,
            attempt: 0,
            attempts: 0,
            returns: 0,
            lease: None,
            answered: None,
            queued_at: 1_000,
            queue_timeout_ms: 60_000,
            retry: RetryPolicy::default(),
        },
        project: of.project,
        index,
        name: format!("job-{index}"),
        backend: "shell".to_owned(),
        class: class().0,
        group: None,
        priority: 0,
        allow_failure: false,
        open_needs: 0,
        claimable: true,
        affinity: format!("a{}", n % 10),
        agent: None,
        returned: None,
        started_at: None,
        finished_at: None,
        version: 0,
    }
}

pub(crate) fn new_job(row: JobRow) -> NewJob {
    let spec = JobSpec {
        name: row.name.clone(),
        backend: row.backend.clone(),
        script: "make".to_owned(),
        ..JobSpec::default()
    };
    NewJob { row, spec, needs: vec![] }
}

pub(crate) fn lease(n: u128, of: &JobRow, agent: AgentId) -> LeaseRow {
    LeaseRow {
        id: LeaseId::from_uuid(uuid(n)),
        job: of.job.id,
        build: of.job.build,
        project: of.project,
        agent,
        session: SessionId::from_uuid(uuid(1)),
        backend: of.backend.clone(),
        attempt: 1,
        phase: LeasePhase::Leased,
        cancelling: false,
        given_at: 2_000,
        started_at: None,
        ended_at: None,
        outcome: None,
        log_lengths: BTreeMap::new(),
    }
}

/// Commits a project, a build of it, the class and these jobs of the build.
pub(crate) async fn seed(store: &SharedStore, jobs: impl Fn(&BuildRow) -> Vec<NewJob>) -> BuildRow {
    let project = project(1);
    let mut build = build(10, &project);
    let jobs = jobs(&build);
    for new in &jobs {
        build.counts.add(new.row.job.status(), new.row.allow_failure);
    }
    let mut tx = store.begin().await.unwrap();
    tx.insert_project(&project).await.unwrap();
    tx.insert_builds(std::slice::from_ref(&build)).await.unwrap();
    tx.ensure_classes(&[class()]).await.unwrap();
    tx.insert_jobs(&jobs).await.unwrap();
    tx.commit().await.unwrap();
    build
}
