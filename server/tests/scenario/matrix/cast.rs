//! Two projects with everything that a project can have, and one caller of each kind.

use std::{collections::BTreeMap, sync::Arc};

use kiln_core::id::TokenId;
use kiln_proto::v1::{
    self, Role, artifact_service_client::ArtifactServiceClient,
    secret_service_client::SecretServiceClient,
};
use kiln_server::{
    Base, Config,
    artifacts::{self, Artifacts, memory::MemoryBlobs},
    config::Limits,
    files::Stored,
    logs::{self, Logs, fs::FsStore, memory::MemoryIndex},
    store::{self, Store, TokenRow, memory::Memory},
};
use sha2::{Digest, Sha256};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::world::{Agent, Link, World, finished, profile, shell};

/// The objects of one project, or those that one call is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Things {
    pub(crate) project: String,
    pub(crate) build: String,
    /// A job that is done and left `artifact`.
    pub(crate) done: String,
    /// The open lease of the project's agent.
    pub(crate) lease: String,
    pub(crate) artifact: String,
    /// Digest of the source that the lease needs.
    pub(crate) source: String,
    /// A token and an agent that nobody else uses.
    pub(crate) token: String,
    pub(crate) agent: String,
    /// A secret of the project that nobody else uses.
    pub(crate) secret: String,
}

pub(crate) struct Cast {
    pub(crate) world: World,
    pub(crate) secrets: BTreeMap<&'static str, String>,
    /// Own, foreign.
    pub(crate) things: [Things; 2],
    pub(crate) agents: Vec<Agent>,
    pub(crate) links: Vec<Link>,
    rows: Memory,
    logs: Arc<MemoryIndex>,
    blobs: Arc<MemoryBlobs>,
    /// Of those who look after logs; they end with it.
    _tasks: TaskTracker,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

impl Cast {
    pub(crate) async fn new() -> Self {
        let rows = Memory::default();
        let (logs, blobs, tasks) = (Arc::default(), Arc::default(), TaskTracker::new());
        let home = tempfile::tempdir().unwrap();
        let mut base = Base::local(Arc::new(rows.clone()));
        base.stored = Some(stored(&base, &logs, &blobs, home.path(), &tasks).await);
        // Nothing but the calls may change a row.
        let quiet = |config| Config {
            heartbeat_ms: 3_600_000,
            grace_ms: 4 * 3_600_000,
            sweep_ms: 3_600_000,
            // Each refused call is a failed login.
            limits: Limits { failures_per_minute: 0, ..Limits::default() },
            ..config
        };
        let world = World::on(base, home, quiet).await;
        let mut cast = Self {
            world,
            secrets: BTreeMap::new(),
            things: [Things::default(), Things::default()],
            agents: vec![],
            links: vec![],
            rows,
            logs,
            blobs,
            _tasks: tasks,
        };
        for (at, project) in ["mine", "theirs"].into_iter().enumerate() {
            cast.things[at] = cast.furnish(project).await;
        }
        cast.invite().await;
        cast
    }

    /// All rows, as text.
    pub(crate) fn rows(&self) -> String {
        format!("{:?}\n{:?}\n{:?}", self.rows, self.logs, self.blobs)
    }

    /// A project with a source, a build with a job that is done and one that runs, and an agent that runs it.
    async fn furnish(&mut self, project: &str) -> Things {
        let request = v1::CreateProjectRequest { name: project.into(), ..Default::default() };
        self.world.projects().create_project(request).await.unwrap();
        let mut agent = self.world.agent(&format!("of-{project}")).await;
        let mut hello = agent.hello("one", &[]);
        hello.profile = Some(profile(1));
        let mut link = agent.greet(hello).await;

        let source = self.upload(&self.world.admin, "", project.as_bytes()).await;
        let archive = v1::ArchiveSource {
            sha256: source.clone(),
            size: i64::try_from(project.len()).unwrap(),
        };
        let source_of = v1::Source { kind: Some(v1::source::Kind::Archive(archive)) };
        let needs = vec![v1::Need { job: "first".into(), artifacts: true }];
        let jobs = vec![shell("first"), v1::JobSpec { needs, ..shell("second") }];
        let spec = v1::BuildSpec { jobs, source: Some(source_of), ..Default::default() };
        let request = v1::SubmitBuildRequest {
            project: project.into(),
            spec: Some(spec),
            ..Default::default()
        };
        let build = self.world.builds().submit_build(request).await.unwrap().into_inner();
        let build = build.build.unwrap().id;

        let first = link.assigned().await;
        link.start(&first.lease).await;
        let text = format!("made by {project}");
        let sha256 = self.upload(&agent.secret, &first.lease, text.as_bytes()).await;
        let v1::session_request::Frame::Finished(mut end) =
            finished(&first.lease, v1::OutcomeState::Succeeded)
        else {
            unreachable!()
        };
        let size = i64::try_from(text.len()).unwrap();
        end.artifacts = vec![v1::Artifact { name: "out".into(), size, sha256, mode: 0o644 }];
        link.say(v1::session_request::Frame::Finished(end)).await;
        assert_eq!(link.answered().await, (first.lease, true));
        let second = link.assigned().await;
        link.start(&second.lease).await;
        self.agents.push(agent);
        self.links.push(link);
        Things {
            project: project.into(),
            build,
            done: first.job,
            lease: second.lease,
            artifact: "out".into(),
            source,
            ..Things::default()
        }
    }

    /// Uploads a blob; returns its digest.
    async fn upload(&self, secret: &str, lease: &str, bytes: &[u8]) -> String {
        let sha256 = hex(&Sha256::digest(bytes));
        let open = v1::PutArtifactOpen {
            sha256: sha256.clone(),
            size: i64::try_from(bytes.len()).unwrap(),
            lease: lease.into(),
        };
        let frames = [
            v1::put_artifact_request::Frame::Open(open),
            v1::put_artifact_request::Frame::Data(bytes.to_vec().into()),
        ];
        let frames = frames.map(|frame| v1::PutArtifactRequest { frame: Some(frame) });
        let mut client = ArtifactServiceClient::new(self.world.client(secret));
        let answers = client.put_artifact(tokio_stream::iter(frames)).await.unwrap();
        let mut answers = answers.into_inner();
        loop {
            if answers.message().await.unwrap().expect("it is stored").stored {
                return sha256;
            }
        }
    }

    /// One caller of each kind. Those that can't be made over the API are made as rows.
    async fn invite(&mut self) {
        for (name, role) in [
            ("enroller", Role::Enroller),
            ("reader", Role::Reader),
            ("submitter", Role::Submitter),
            ("admin", Role::Admin),
            ("revoked", Role::Admin),
        ] {
            let secret = self.world.token(&format!("a-{name}"), role, "").await;
            self.secrets.insert(name, secret);
        }
        for (name, role) in
            [("reader@", Role::Reader), ("submitter@", Role::Submitter), ("admin@", Role::Admin)]
        {
            let secret = self.world.token(&name.replace('@', "-mine"), role, "mine").await;
            self.secrets.insert(name, secret);
        }
        let mine = self.rows.project("mine").await.unwrap().unwrap().id;
        let bound = self.token_row(1, store::Role::Enroller, Some(mine), None).await;
        let expired = self.token_row(2, store::Role::Admin, None, Some(1)).await;
        self.revoke("a-revoked").await;
        let evicted = self.world.agent("evicted").await.secret;
        let request = v1::EvictAgentRequest { agent: "evicted".into() };
        self.world.admins().evict_agent(request).await.unwrap();
        let agent = self.agents[0].secret.clone();
        self.secrets.extend([
            ("none", String::new()),
            ("enroller@", bound),
            ("expired", expired),
            ("evicted", evicted),
            ("agent", agent),
        ]);
    }

    async fn token_row(
        &self,
        number: u128,
        role: store::Role,
        project: Option<kiln_core::id::ProjectId>,
        expires_at: Option<i64>,
    ) -> String {
        let id = Uuid::from_u128(number);
        let secret = format!("kiln_{}_{}", id.simple(), "x".repeat(43));
        let row = TokenRow {
            id: TokenId::from_uuid(id),
            name: format!("row-{number}"),
            role,
            project,
            secret_sha256: Sha256::digest(&secret).to_vec(),
            created_at: 0,
            expires_at,
            used: None,
            last_used_at: None,
            old_secret: None,
        };
        let mut tx = self.rows.begin().await.unwrap();
        tx.insert_token(&row).await.unwrap();
        tx.commit().await.unwrap();
        secret
    }

    async fn revoke(&self, name: &str) {
        let token = self.token_named(name).await;
        self.world.admins().revoke_token(v1::RevokeTokenRequest { token }).await.unwrap();
    }

    async fn token_named(&self, name: &str) -> String {
        let tokens = self.world.admins().list_tokens(v1::ListTokensRequest {}).await.unwrap();
        let mut tokens = tokens.into_inner().tokens.into_iter();
        tokens.find(|token| token.name == name).unwrap().id
    }

    /// What one call of a method is about: objects of the own (0) or the foreign (1) project, fresh where the method
    /// ends what it is called on.
    pub(crate) async fn things(&self, method: &str, whose: usize) -> Things {
        let mut things = self.things[whose].clone();
        let unique = Uuid::from_u128(rand()).simple().to_string();
        match method {
            "AdminService/RevokeToken" | "AdminService/RotateToken" => {
                self.world.token(&unique, Role::Reader, "").await;
                things.token = self.token_named(&unique).await;
            }
            "AdminService/DrainAgent"
            | "AdminService/EvictAgent"
            | "AdminService/PauseAgent"
            | "AdminService/ResumeAgent" => {
                self.world.agent(&unique).await;
                things.agent = unique;
            }
            "SecretService/DeleteSecret" => {
                things.secret = format!("S_{}", unique.to_uppercase());
                let request = v1::SetSecretRequest {
                    project: things.project.clone(),
                    name: things.secret.clone(),
                    value: b"hush".to_vec(),
                };
                let client = self.world.client(&self.world.admin);
                SecretServiceClient::new(client).set_secret(request).await.unwrap();
            }
            "BuildService/CancelBuild" | "BuildService/RetryBuild" => {
                things.build = self.spare_build(&things.project, method).await;
            }
            _ => {}
        }
        things
    }

    async fn spare_build(&self, project: &str, method: &str) -> String {
        let spec = v1::BuildSpec { jobs: vec![shell("spare")], ..Default::default() };
        let request = v1::SubmitBuildRequest {
            project: project.into(),
            spec: Some(spec),
            ..Default::default()
        };
        let build = self.world.builds().submit_build(request).await.unwrap().into_inner();
        let build = build.build.unwrap().id;
        if method.ends_with("RetryBuild") {
            let request = v1::CancelBuildRequest { build: build.clone(), ..Default::default() };
            self.world.builds().cancel_build(request).await.unwrap();
        }
        build
    }
}

/// Never the same twice in this process.
pub(crate) fn rand() -> u128 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1_000);
    u128::from(NEXT.fetch_add(1, Ordering::SeqCst))
}

async fn stored(
    base: &Base,
    index: &Arc<MemoryIndex>,
    blobs: &Arc<MemoryBlobs>,
    home: &std::path::Path,
    tasks: &TaskTracker,
) -> Stored {
    let logs: Arc<dyn logs::LogIndex> = Arc::<MemoryIndex>::clone(index);
    let store = FsStore::open(home.join("logs"), Arc::clone(&logs), "one").await.unwrap();
    let parts = logs::Parts {
        index: logs,
        store: Arc::new(store),
        rows: Arc::clone(&base.store),
        wake: Arc::clone(&base.wake),
        clock: Arc::clone(&base.clock),
        look: std::time::Duration::from_secs(3),
    };
    let logs = Logs::start(parts, tasks, CancellationToken::new());
    let parts = artifacts::Parts {
        index: Arc::<MemoryBlobs>::clone(blobs),
        objects: Arc::new(object_store::memory::InMemory::new()),
        root: object_store::path::Path::from("blobs"),
        folder: home.join("uploads"),
        rows: Arc::clone(&base.store),
        clock: Arc::clone(&base.clock),
        max_blob: 1 << 20,
    };
    Stored { logs, artifacts: Artifacts::open(parts).await.unwrap() }
}
