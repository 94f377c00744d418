//! A job with a lease, for the tests of logs and artifacts.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use kiln_core::{
    Millis,
    build::Counts,
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId, SessionId},
    job::{Job, State},
    outcome::{Outcome, RetryPolicy},
    schedule::Class,
    session::{Artifact, LeasePhase},
    spec::JobSpec,
};
use object_store::aws::AmazonS3Builder;
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    clock::Clock,
    storage::{self, Objects},
    store::sql::{self, Sql},
    store::{ArtifactRow, BuildRow, JobRow, LeaseRow, NewJob, ProjectRow, SharedStore},
    wake::{Local, Topic, Wake},
};

/// A clock that a test sets, with ids in a row.
#[derive(Debug, Default)]
pub(crate) struct TestClock {
    pub(crate) now: AtomicI64,
    ids: AtomicU64,
}

impl Clock for TestClock {
    fn now(&self) -> Millis {
        self.now.load(Ordering::SeqCst)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.now().unsigned_abs())
    }

    fn id(&self) -> Uuid {
        Uuid::from_u128(0xf00d_0000 + u128::from(self.ids.fetch_add(1, Ordering::SeqCst)))
    }
}

/// One build of one job of one project, leased once to one agent.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) rows: SharedStore,
    pub(crate) wake: Arc<Local>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) agent: AgentId,
    pub(crate) project: ProjectId,
    pub(crate) build: BuildId,
    pub(crate) job: JobId,
    pub(crate) lease: LeaseId,
}

impl World {
    pub(crate) async fn new(rows: SharedStore) -> Self {
        let clock = Arc::new(TestClock::default());
        clock.now.store(1_700_000_000_000, Ordering::SeqCst);
        let world = Self {
            rows,
            wake: Arc::default(),
            agent: AgentId::from_uuid(clock.id()),
            project: ProjectId::from_uuid(clock.id()),
            build: BuildId::from_uuid(clock.id()),
            job: JobId::from_uuid(clock.id()),
            lease: LeaseId::from_uuid(clock.id()),
            clock,
        };
        world.insert().await;
        world.give(world.lease, 1).await;
        world
    }

    pub(crate) fn wait(&self, time: Duration) {
        self.clock.now.fetch_add(i64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }

    async fn insert(&self) {
        let (now, class) = (self.clock.now(), ClassId::from_uuid(self.clock.id()));
        let project = ProjectRow {
            id: self.project,
            name: "demo".to_owned(),
            weight: 1,
            max_running: 0,
            paused: false,
            running: 0,
            created_at: now,
        };
        let build = BuildRow {
            id: self.build,
            project: self.project,
            title: String::new(),
            key: None,
            digest: String::new(),
            priority: 0,
            annotations: BTreeMap::new(),
            submitter: "test".to_owned(),
            counts: Counts::default(),
            last_event: 0,
            created_at: now,
            finished_at: None,
        };
        let mut spec = JobSpec { name: "job".to_owned(), ..JobSpec::default() };
        spec.resources.artifact_bytes = 1 << 20;
        let mut tx = self.rows.begin().await.unwrap();
        tx.insert_project(&project).await.unwrap();
        tx.insert_builds(&[build]).await.unwrap();
        let class = tx.ensure_classes(&[(class, Class::of(&spec))]).await.unwrap()[0];
        let row = self.job_row(class);
        tx.insert_jobs(&[NewJob { row, spec, needs: vec![] }]).await.unwrap();
        tx.commit().await.unwrap();
    }

    fn job_row(&self, class: ClassId) -> JobRow {
        let job = Job {
            id: self.job,
            build: self.build,
            state: State::Queued { not_before: 0 },
            round: 1,
            attempt: 0,
            attempts: 0,
            returns: 0,
            lease: None,
            answered: None,
            queued_at: self.clock.now(),
            queue_timeout_ms: 1_000,
            retry: RetryPolicy::default(),
        };
        JobRow {
            job,
            project: self.project,
            index: 0,
            name: "job".to_owned(),
            backend: "shell".to_owned(),
            class,
            group: None,
            priority: 0,
            allow_failure: false,
            open_needs: 0,
            claimable: true,
            affinity: String::new(),
            agent: None,
            returned: None,
            started_at: None,
            finished_at: None,
            version: 1,
        }
    }

    /// Leases the job once more.
    pub(crate) async fn give(&self, lease: LeaseId, attempt: u32) {
        let row = LeaseRow {
            id: lease,
            job: self.job,
            build: self.build,
            project: self.project,
            agent: self.agent,
            session: SessionId::from_uuid(Uuid::nil()),
            backend: "shell".to_owned(),
            attempt,
            phase: LeasePhase::Running,
            cancelling: false,
            given_at: self.clock.now(),
            started_at: Some(self.clock.now()),
            ended_at: None,
            outcome: None,
            log_lengths: BTreeMap::new(),
        };
        let mut tx = self.rows.begin().await.unwrap();
        tx.insert_leases(&[row]).await.unwrap();
        tx.commit().await.unwrap();
        self.wake.publish(&[Topic::Build(self.build)]);
    }

    /// Ends a lease with this length of its main stream.
    pub(crate) async fn end(&self, lease: LeaseId, phase: LeasePhase, length: u64) {
        let mut tx = self.rows.begin().await.unwrap();
        let mut row = tx.leases(&[lease]).await.unwrap().remove(0);
        row.phase = phase;
        row.ended_at = Some(self.clock.now());
        row.log_lengths = [("main".to_owned(), length)].into();
        tx.save_leases(&[row]).await.unwrap();
        tx.commit().await.unwrap();
        self.wake.publish(&[Topic::Log(lease), Topic::Build(self.build)]);
    }

    /// Ends the job.
    pub(crate) async fn finish_job(&self) {
        let mut tx = self.rows.begin().await.unwrap();
        let mut row = tx.jobs(&[self.job]).await.unwrap().remove(0);
        row.job.state = State::Done(Outcome::Succeeded);
        tx.save_jobs(&[row]).await.unwrap();
        tx.commit().await.unwrap();
        self.wake.publish(&[Topic::Build(self.build)]);
    }

    /// Records an artifact, as the taking of a report does.
    pub(crate) async fn leave(&self, artifact: Artifact) {
        let mut tx = self.rows.begin().await.unwrap();
        let row = ArtifactRow { job: self.job, build: self.build, lease: self.lease, artifact };
        tx.put_artifacts(&[self.job], &[row]).await.unwrap();
        tx.commit().await.unwrap();
    }
}

/// A fresh SQLite, and a fresh database of the Postgres that is named, where one is; the store suite says so aloud.
pub(crate) async fn databases() -> Vec<(Sql, TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite:{}", folder.path().join("kiln.db").display());
    let mut made = vec![(migrated(&sqlite).await, folder)];
    if let Ok(base) = std::env::var("KILN_TEST_POSTGRES") {
        let connected = tokio_postgres::connect(&base, tokio_postgres::NoTls).await;
        let (client, connection) = connected.unwrap();
        let name = format!("bytes_{}", Uuid::now_v7().simple());
        let text = format!("CREATE DATABASE {name}");
        let create = async move { client.batch_execute(&text).await };
        let (created, _) = tokio::join!(create, connection);
        created.unwrap();
        let (server, _) = base.rsplit_once('/').unwrap();
        made.push((migrated(&format!("{server}/{name}")).await, tempfile::tempdir().unwrap()));
    }
    made
}

/// A prefix of its own in the bucket of the S3 that is named, as `http://127.0.0.1:PORT/BUCKET`.
pub(crate) async fn bucket() -> Option<Objects> {
    let Ok(url) = std::env::var("KILN_TEST_S3") else {
        let required = std::env::var("KILN_TEST_REQUIRE").is_ok_and(|value| value == "1");
        assert!(!required, "KILN_TEST_S3 is not set, but KILN_TEST_REQUIRE=1");
        println!("skipped: KILN_TEST_S3 is not set");
        return None;
    };
    let (endpoint, bucket) = url.rsplit_once('/').unwrap();
    let prefix = Uuid::now_v7().simple().to_string();
    Some(storage::bucket(s3(endpoint), bucket, &prefix).await.unwrap())
}

pub(crate) fn s3(endpoint: &str) -> AmazonS3Builder {
    AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_access_key_id("test")
        .with_secret_access_key("never-shown")
}

async fn migrated(url: &str) -> Sql {
    let options = sql::Options { connections: 4, ..sql::Options::default() };
    let database = sql::connect(url, &options).await.unwrap();
    database.migrate().await.unwrap();
    database
}
