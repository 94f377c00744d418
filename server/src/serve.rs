//! The assembly of a server: store, wake, use cases, edges, and an end within a bound.

mod bytes;
mod gate;
mod http;
mod keys;
mod life;
mod listen;
mod ready;
mod tls;
mod tuning;

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::Stream;
use kiln_proto::v1;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use gate::{Connection, Gate};
use life::Life;
use ready::Readiness;
use tls::Tls;
pub use tuning::Tuning;

use crate::{
    app::{self, App},
    authority,
    clock::{SharedClock, SystemClock},
    config::{self, Config, Limits},
    crypto,
    data::{self, Folder},
    files::{Files, NoFiles, Stored},
    grpc::{
        Admin, Agents, ArtifactApi, Builds, LogApi, Projects, Secrets,
        auth::{AuthLayer, Limiter},
        call::CallLayer,
    },
    live::Live,
    metrics::Metrics,
    session, storage,
    store::{self, SharedStore, sql},
    wake::{Local, Wake, postgres},
};

/// A dead connection is noticed within the sum of both.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);
/// The default of 64 KiB allows 4 MB/s over a distance.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Streams of one connection: an agent pushes a few for each of its leases.
const MAX_STREAMS: u32 = 4_096;
const MAX_MESSAGE: usize = 4 << 20;
/// Bytes of the headers of one call.
const MAX_HEADERS: u32 = 16 << 10;

/// Why a server does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the configuration can't be used")]
    Config(#[from] config::Error),
    #[error("the data folder can't be used")]
    Data(#[from] data::Error),
    #[error("the database can't be used")]
    Store(#[from] store::Error),
    #[error("the server can't hear the other servers of its database")]
    Wake(#[from] postgres::Error),
    #[error("logs and artifacts can't be used")]
    Files(#[from] crate::uploads::Error),
    #[error("the store of logs and artifacts can't be used")]
    Storage(#[from] storage::Error),
    #[error("secrets are encrypted with keys that this server does not have: {}; add them to the file of keys", .0.join(", "))]
    SecretKeys(Vec<String>),
    #[error("the server can't be set up")]
    App(#[from] app::Error),
    #[error("TLS can't be set up")]
    Tls(#[from] rustls::Error),
    #[error("TLS can't be set up")]
    Certificate(#[from] authority::Error),
    #[error("can't listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the server of {address} failed")]
    Transport {
        address: SocketAddr,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("the reflection service can't be built")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the server's task failed")]
    Task(#[from] tokio::task::JoinError),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a server stands on; a scenario brings its own.
#[derive(Debug)]
pub struct Base {
    pub store: SharedStore,
    pub wake: Arc<dyn Wake>,
    pub clock: SharedClock,
    /// Logs and blobs; without them their services are not offered.
    pub stored: Option<Stored>,
    pub metrics: Metrics,
}

impl Base {
    /// One process, without logs and blobs.
    pub fn local(store: SharedStore) -> Self {
        Self {
            store,
            wake: Arc::new(Local::default()),
            clock: Arc::new(SystemClock::default()),
            stored: None,
            metrics: Metrics::default(),
        }
    }
}

/// A server that runs.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    encrypted: bool,
    tuning: Tuning,
    main: JoinHandle<Result<()>>,
}

impl Running {
    /// Where clients of this machine find it.
    pub fn url(&self) -> String {
        let scheme = if self.encrypted { "https" } else { "http" };
        let addr = match self.addr.ip() {
            ip if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, self.addr.port()).into(),
            _ => self.addr,
        };
        format!("{scheme}://{addr}")
    }

    /// Its use cases, for roles of the same process.
    pub fn app(&self) -> &App {
        &self.tuning.app
    }

    /// What of its configuration may change from now on.
    pub fn tuning(&self) -> Tuning {
        self.tuning.clone()
    }

    /// Until it has ended: after its shutdown, or because it failed.
    pub async fn wait(self) -> Result<()> {
        self.main.await?
    }
}

/// Starts a server on its database.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<Running> {
    config.check()?;
    crypto::install();
    let folder = Folder::open(&config.data_dir)?;
    let metrics = Metrics::default();
    let options = sql::Options {
        connections: config.connections,
        durable: config.durable,
        metrics: metrics.clone(),
    };
    let sql = sql::connect(&config.database_url(), &options).await?;
    sql.migrate().await?;
    let life = Life::new(&config, &shutdown);
    let base = match base(&config, sql.clone(), &life).await {
        Ok(base) => Base { metrics, ..base },
        Err(error) => {
            life.end(async { Ok(()) }).await?;
            return Err(error);
        }
    };
    assemble(config, folder, base, life, async move { sql.close().await }).await
}

/// As [`serve`], on what the caller brings.
pub async fn serve_with(
    config: Config,
    base: Base,
    shutdown: CancellationToken,
) -> Result<Running> {
    config.check()?;
    let folder = Folder::open(&config.data_dir)?;
    let life = Life::new(&config, &shutdown);
    assemble(config, folder, base, life, async {}).await
}

/// What a server on this database stands on.
async fn base(config: &Config, sql: sql::Sql, life: &Life) -> Result<Base> {
    let sql = Arc::new(sql);
    let mut base = Base::local(Arc::<sql::Sql>::clone(&sql));
    if config.is_postgres() {
        let (replica, halt) = (base.clock.id(), life.halt.clone());
        let url = config.database_url();
        base.wake = Arc::new(postgres::Postgres::start(&url, replica, &life.tasks, halt).await?);
    }
    let ground = bytes::Ground {
        config,
        rows: Arc::clone(&base.store),
        wake: Arc::clone(&base.wake),
        clock: Arc::clone(&base.clock),
        tasks: &life.tasks,
        halt: &life.halt,
    };
    base.stored = Some(bytes::open(ground, sql).await?);
    Ok(base)
}

async fn assemble(
    config: Config,
    folder: Folder,
    base: Base,
    life: Life,
    close: impl Future<Output = ()> + Send + 'static,
) -> Result<Running> {
    let address = config.listen;
    let listen = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let addr = listener.local_addr().map_err(listen)?;
    let Base { store, wake, clock, stored, metrics } = base;
    let app = App::new(store, wake, clock, config.timing(), metrics);
    app.start(&life.tasks, &life.halt);
    let tls = match prepare(&config, &app, &folder).await {
        Ok(tls) => tls,
        Err(error) => {
            life.end(async { Ok(()) }).await?;
            return Err(error);
        }
    };
    if let Some(tls) = tls.clone() {
        life.tasks.spawn(tls.tend(life.halt.clone()));
    }
    let tuning = Tuning::new(&config, &app);
    let auth = AuthLayer::new(app.clone(), config.auth, tuning.limiter.clone())
        .with_open_metrics(config.metrics.open);
    let files: Arc<dyn Files> = match stored.clone() {
        Some(stored) => Arc::new(stored),
        None => Arc::new(NoFiles),
    };
    life.tasks.spawn(sweep(
        app.clone(),
        tuning.limiter.clone(),
        Arc::clone(&files),
        life.halt.clone(),
    ));
    if let Some(stored) = stored.clone() {
        life.tasks.spawn(bytes::tend(
            app.clone(),
            stored,
            tuning.retention.clone(),
            life.halt.clone(),
        ));
    }
    let routes = routes(&app, files, stored, tuning.limits.clone(), &life)?;
    let encrypted = tls.is_some();
    let gate = Gate::new(tuning.limits.clone(), app.metrics().clone());
    let tasks = life.tasks.clone();
    let incoming = listen::incoming(listener, gate, tls, tasks, life.stop.clone());
    let call = CallLayer::new(Arc::clone(app.clock()));
    let server = server(call, auth, routes, incoming, life.stop.clone());
    let server =
        async move { server.await.map_err(|source| Error::Transport { address: addr, source }) };
    // Not one of the tasks that it waits for.
    let main = TaskTracker::new().spawn(async move {
        let ended = Box::pin(life.end(server)).await;
        close.await;
        drop(folder);
        ended
    });
    tracing::info!(%addr, encrypted, "the server listens");
    Ok(Running { addr, encrypted, tuning, main })
}

/// What must be there before the first call.
async fn prepare(config: &Config, app: &App, folder: &Folder) -> Result<Option<Arc<Tls>>> {
    keys::load(config, folder, app).await?;
    admin_token(app, folder).await?;
    if config.tls.enabled { Ok(Some(Tls::open(config, app).await?)) } else { Ok(None) }
}

/// The token of the first administrator, where nobody has one yet. One that was revoked stays so.
async fn admin_token(app: &App, folder: &Folder) -> Result<()> {
    if !app.tokens().await?.is_empty() {
        return Ok(());
    }
    let secret = match folder.admin_token()? {
        Some(secret) => secret,
        None => folder.make_admin_token(app.clock().id())?,
    };
    if !app.ensure_admin_token("admin", &secret).await? {
        // Another server that started at the same moment was quicker, and has the token.
        folder.remove_admin_token()?;
    }
    Ok(())
}

/// Finds what hints have missed.
async fn sweep(app: App, limiter: Limiter, files: Arc<dyn Files>, halt: CancellationToken) {
    let mut ticks = tokio::time::interval(app.timing().sweep);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = halt.cancelled() => return,
            _ = ticks.tick() => {}
        }
        tokio::select! {
            () = halt.cancelled() => return,
            swept = async { app.sweep().await?; app.sweep_secrets(&*files).await?; limiter.review(&app).await } => if let Err(error) = swept {
                tracing::warn!(%error, "a sweep failed; the next one looks again");
            }
        }
    }
}

fn routes(
    app: &App,
    files: Arc<dyn Files>,
    stored: Option<Stored>,
    limits: Live<Limits>,
    life: &Life,
) -> Result<Routes> {
    use v1::{
        admin_service_server::AdminServiceServer, agent_service_server::AgentServiceServer,
        build_service_server::BuildServiceServer, project_service_server::ProjectServiceServer,
        secret_service_server::SecretServiceServer,
    };
    let parts =
        session::Parts { app: app.clone(), files: Arc::clone(&files), stop: life.stop.clone() };
    let builds = BuildServiceServer::new(Builds::new(app.clone(), files, life.stop.clone()));
    let agents = AgentServiceServer::new(Agents::new(parts, life.tasks.clone(), limits));
    let blobs = stored.as_ref().map(|stored| stored.artifacts.clone());
    let ready = Readiness::new(app.clone(), blobs, life.leaving.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    life.tasks.spawn(ready::report(ready.clone(), health, life.halt.clone()));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(kiln_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::from(http::router(app.clone(), ready))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(builds.max_decoding_message_size(MAX_MESSAGE))
        .add_service(agents.max_decoding_message_size(MAX_MESSAGE))
        .add_service(ProjectServiceServer::new(Projects::new(app.clone())))
        .add_service(SecretServiceServer::new(Secrets::new(app.clone())))
        .add_service(AdminServiceServer::new(Admin::new(app.clone())));
    Ok(match stored {
        Some(stored) => file_routes(routes, stored, app.metrics(), life),
        None => routes,
    })
}

fn file_routes(routes: Routes, stored: Stored, metrics: &Metrics, life: &Life) -> Routes {
    use v1::{
        artifact_service_server::ArtifactServiceServer, log_service_server::LogServiceServer,
    };
    let Stored { logs, artifacts } = stored;
    let logs = LogApi::new(logs, metrics.clone(), life.tasks.clone(), life.stop.clone());
    let artifacts =
        ArtifactApi::new(artifacts, metrics.clone(), life.tasks.clone(), life.stop.clone());
    routes
        .add_service(LogServiceServer::new(logs).max_decoding_message_size(MAX_MESSAGE))
        .add_service(ArtifactServiceServer::new(artifacts).max_decoding_message_size(MAX_MESSAGE))
}

async fn server(
    call: CallLayer,
    auth: AuthLayer,
    routes: Routes,
    incoming: impl Stream<Item = io::Result<Connection>>,
    stop: CancellationToken,
) -> std::result::Result<(), tonic::transport::Error> {
    tonic::transport::Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .layer(call)
        .layer(auth)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}
