//! The use cases as scenarios over a store. Each takes a [`World`], so that it can run on any store.

/// Each of these scenarios on each store.
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(super::World::in_memory()).await;
                }
            )*
        }
        mod sqlite {
            $(
                #[tokio::test]
                async fn $name() {
                    let folder = tempfile::tempdir().unwrap();
                    super::$name(super::World::on_sqlite(folder.path()).await).await;
                }
            )*
        }
        mod postgres {
            $(
                #[tokio::test]
                async fn $name() {
                    let Some(database) = super::Database::create().await else { return };
                    super::$name(super::World::over(database.store())).await;
                    database.drop().await;
                }
            )*
        }
    };
}

mod builds;
mod claims;
mod commits;
mod database;
mod reaper;
mod retention;
mod secrets;
mod sessions;
mod tokens;

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
    agent::{Admission, Load, Offer, Profile},
    event::Change,
    id::{AgentId, BuildId, JobId, LeaseId, SessionId},
    job::Status,
    outcome::{FailureKind, Outcome},
    session::{Assignment, Held, Record, Recorded, Report},
    spec::{BuildSpec, JobSpec, Need},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use self::database::Database;
use super::{App, BuildView, Hello, Submit, Timing, Welcome};
use crate::{
    clock::Clock,
    metrics::Metrics,
    store::{
        AgentRow, JobRow, SharedStore,
        memory::Memory,
        sql::{Options, connect},
    },
    wake::Local,
};

/// A clock that stands still until it is told to move.
#[derive(Debug)]
struct FakeClock {
    now: AtomicI64,
    elapsed: AtomicU64,
    ids: AtomicU64,
}

impl FakeClock {
    fn advance(&self, ms: u64) {
        self.jump(i64::try_from(ms).unwrap());
        self.elapsed.fetch_add(ms, Ordering::SeqCst);
    }

    /// The wall clock is set; no time passes.
    fn jump(&self, ms: i64) {
        self.now.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Millis {
        self.now.load(Ordering::SeqCst)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed.load(Ordering::SeqCst))
    }

    fn id(&self) -> Uuid {
        Uuid::from_u128(u128::from(self.ids.fetch_add(1, Ordering::SeqCst)) + 1)
    }
}

/// A server without edges.
struct World {
    app: App,
    store: SharedStore,
    clock: Arc<FakeClock>,
    shutdown: CancellationToken,
    tracker: TaskTracker,
}

impl World {
    fn over(store: SharedStore) -> Self {
        let clock = Arc::new(FakeClock {
            now: AtomicI64::new(1_000_000),
            elapsed: AtomicU64::new(0),
            ids: AtomicU64::new(0),
        });
        Self::beside(store, clock)
    }

    /// One more replica over the same rows.
    fn beside(store: SharedStore, clock: Arc<FakeClock>) -> Self {
        let world = Self::idle(store, clock);
        world.app.start(&world.tracker, &world.shutdown);
        world
    }

    /// A replica that commits, but hears no hints and keeps no timers: only its own commits wake anybody.
    fn deaf(self) -> Self {
        let world = Self::idle(Arc::clone(&self.store), Arc::clone(&self.clock));
        world.app.0.committer.start(&world.app, &world.tracker, &world.shutdown, 1);
        world.app.0.hellos.start(&world.app, &world.tracker, &world.shutdown);
        world
    }

    fn idle(store: SharedStore, clock: Arc<FakeClock>) -> Self {
        let wake = Arc::new(Local::default());
        let app = App::new(
            Arc::clone(&store),
            wake,
            Arc::clone(&clock) as _,
            Timing::default(),
            Metrics::default(),
        );
        Self { app, store, clock, shutdown: CancellationToken::new(), tracker: TaskTracker::new() }
    }

    fn in_memory() -> Self {
        Self::over(Arc::new(Memory::default()))
    }

    async fn on_sqlite(folder: &std::path::Path) -> Self {
        let url = format!("sqlite:{}", folder.join("kiln.db").display());
        let sql = connect(&url, &Options::default()).await.unwrap();
        sql.migrate().await.unwrap();
        Self::over(Arc::new(sql))
    }

    /// An enrolled agent with slots of the backend "shell", without a session.
    async fn enrol(&self, name: &str) -> AgentId {
        let agent = AgentId::from_uuid(self.clock.id());
        let row = AgentRow {
            id: agent,
            name: name.to_owned(),
            credential_sha256: vec![0; 32],
            admission: Admission::Open,
            profile: Profile::default(),
            load: Load::default(),
            created_at: self.clock.now(),
            seen_at: 0,
            epoch: 0,
            certificate: None,
        };
        let mut tx = self.store.begin().await.unwrap();
        tx.insert_agent(&row).await.unwrap();
        tx.commit().await.unwrap();
        agent
    }

    async fn hello(
        &self,
        agent: AgentId,
        epoch: i64,
        slots: u32,
        journal: &[(LeaseId, Held)],
    ) -> Welcome {
        let hello = Hello {
            instance: "machine".to_owned(),
            epoch,
            profile: profile(slots),
            journal: journal.to_vec(),
        };
        self.app.hello(agent, hello).await.unwrap()
    }

    /// An agent that is connected.
    async fn connect(&self, name: &str, slots: u32) -> SessionId {
        let agent = self.enrol(name).await;
        self.hello(agent, 1, slots, &[]).await.session
    }

    async fn submit(&self, jobs: Vec<JobSpec>) -> BuildView {
        self.submit_to("default", jobs).await
    }

    async fn submit_to(&self, project: &str, jobs: Vec<JobSpec>) -> BuildView {
        self.app.submit(submission(project, None, jobs)).await.unwrap().0
    }

    async fn jobs(&self, build: BuildId) -> BTreeMap<String, JobRow> {
        let jobs = self.store.jobs_of(build).await.unwrap();
        jobs.into_iter().map(|row| (row.name.clone(), row)).collect()
    }

    async fn job(&self, build: BuildId, name: &str) -> JobRow {
        self.jobs(build).await.remove(name).unwrap()
    }

    /// `a:succeeded b:queued …`
    async fn statuses(&self, build: BuildId) -> String {
        let jobs = self.store.jobs_of(build).await.unwrap();
        let words = jobs.iter().map(|row| format!("{}:{}", row.name, row.job.status().as_str()));
        words.collect::<Vec<_>>().join(" ")
    }

    async fn claim(&self, session: SessionId) -> Vec<Assignment> {
        self.app.claim(session).await.unwrap()
    }

    /// Claims, starts and ends one job.
    async fn run_one(&self, session: SessionId, outcome: Outcome) -> Assignment {
        let given = self.claim(session).await.remove(0);
        self.start(session, given.lease).await;
        assert_eq!(self.finish(session, given.lease, outcome).await, Recorded::Finished);
        given
    }

    async fn start(&self, session: SessionId, lease: LeaseId) {
        let recorded = self.app.record(session, Record::Start(lease)).await.unwrap();
        assert_eq!(recorded, Recorded::Started);
    }

    async fn finish(&self, session: SessionId, lease: LeaseId, outcome: Outcome) -> Recorded {
        self.app.record(session, Record::Finish(lease, report(outcome))).await.unwrap()
    }

    /// The counts are the fold of the jobs, and events have no gaps.
    async fn check(&self) {
        assert_eq!(self.store.inconsistent(10).await.unwrap(), []);
        for row in
            self.store.builds(&crate::store::BuildFilter::default(), None, 1_000).await.unwrap()
        {
            let events = self.store.events(row.id, 0, 100_000).await.unwrap();
            let numbers: Vec<i64> = events.iter().map(|event| event.number).collect();
            assert_eq!(numbers, (1..=row.last_event).collect::<Vec<_>>());
            assert_eq!(row.finished_at.is_some(), row.state().is_done());
            let last = events.iter().rev().find_map(|event| match event.change {
                Change::Build { state } => Some(state),
                _ => None,
            });
            assert!(last.is_none_or(|state| state == row.state()), "{last:?} {:?}", row.state());
        }
        let open = self.store.open_leases(None).await.unwrap();
        for project in self.store.projects().await.unwrap() {
            let running = open.iter().filter(|lease| lease.project == project.id).count();
            assert_eq!(project.running as usize, running, "open leases of {}", project.name);
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

fn profile(slots: u32) -> Profile {
    let offer = Offer { slots, operations: ["script".to_owned()].into(), ..Offer::default() };
    Profile {
        arch: "x86_64".into(),
        backends: [("shell".to_owned(), offer)].into(),
        ..Profile::default()
    }
}

fn job(name: &str, needs: &[&str]) -> JobSpec {
    JobSpec {
        name: name.into(),
        backend: "shell".into(),
        script: "true".into(),
        needs: needs.iter().map(|&job| Need { job: job.into(), artifacts: true }).collect(),
        ..JobSpec::default()
    }
}

fn jobs(count: usize) -> Vec<JobSpec> {
    (0..count).map(|n| job(&format!("j{n}"), &[])).collect()
}

fn submission(project: &str, key: Option<&str>, jobs: Vec<JobSpec>) -> Submit {
    Submit {
        project: project.into(),
        key: key.map(str::to_owned),
        spec: BuildSpec { jobs, ..BuildSpec::default() },
        secrets: vec![],
        submitter: "someone".into(),
        trace: None,
    }
}

fn report(outcome: Outcome) -> Report {
    Report { outcome, artifacts: vec![], log_lengths: [("main".to_owned(), 7)].into() }
}

fn failed() -> Outcome {
    Outcome::failed(FailureKind::User, "exit code 1")
}

fn ids(given: &[Assignment]) -> Vec<JobId> {
    given.iter().map(|given| given.job).collect()
}

fn status(row: &JobRow) -> Status {
    row.job.status()
}
