//! `kiln server`: a server for a real deployment.

use std::path::PathBuf;

use kiln_server::Config;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    cmd::{Cx, Result},
    context,
    exit::ExitStatus,
    log::{self, Log, LogOptions},
    roles,
    settings::{self, Flags, Part, Settings},
};

/// Of the variables that a server reads.
pub(crate) const PREFIX: &str = "KILN_";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    log: LogOptions,
    /// Print the configuration as it would be used, and end: 0 where it can be used, 2 where not
    #[arg(long)]
    check_config: bool,
}

/// What `server`, `migrate` and `admin` take of the configuration by flags. The environment says the rest.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// TOML file; environment (KILN_…) and flags override it
    #[arg(long, value_name = "FILE", env = "KILN_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Address to listen on, as 127.0.0.1:7420 [env: KILN_LISTEN]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Folder of logs, artifacts and the first administrator's token [env: KILN_DATA]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// sqlite:PATH or postgres://…; keep a password in the file or the environment [env: KILN_DATABASE]
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// Where logs and artifacts are: file:///PATH or s3://BUCKET/PREFIX; empty: the data folder [env: KILN_STORAGE_URL]
    #[arg(long, value_name = "URL")]
    storage_url: Option<String>,
    /// Encrypt connections: with tls.cert_file, or a certificate of the servers' own authority [env: KILN_TLS_ENABLED]
    #[arg(long)]
    tls: bool,
}

/// The configuration of a process that serves.
#[derive(Debug)]
pub(crate) struct Configured {
    pub(crate) server: Part<Config>,
    pub(crate) log: Part<Log>,
}

impl Options {
    /// The layers, with what more flags say.
    pub(crate) fn settings(&self, more: Flags) -> Result<Settings> {
        let Self { config, listen, data, database, storage_url, tls } = self;
        let flags = Flags::default()
            .set("listen", "--listen", listen.clone())
            .path("data", "--data", data.as_deref())
            .set("database", "--database", database.clone())
            .set("storage.url", "--storage-url", storage_url.clone())
            .set("tls.enabled", "--tls", tls.then_some(true))
            .and(more);
        Settings::read(config.as_deref(), flags)
    }
}

impl Configured {
    pub(crate) fn of(mut settings: Settings) -> Result<Self> {
        let log = settings.part("log.", log::PREFIX, &[("filter", log::filter("info").into())]);
        let server = settings.part("", PREFIX, &[("data", settings::path(&context::data_dir()))]);
        settings.finish()?;
        Ok(Self { server, log })
    }
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let Self { options, log, .. } = self;
        let global = cx.global.clone();
        let read = move || Configured::of(options.settings(log.flags(&global))?);
        let Configured { mut server, mut log } = read()?;
        if self.check_config {
            settings::show(cx, vec![server.shown(), log.shown()])?;
            return Ok(ExitStatus::Succeeded);
        }
        let logging = log::start(&log.config, cx.printer.colors_err());
        open_many_files();
        let stop = roles::stop_on_signal(cx.printer)?;
        let failed = |error| roles::failed("the server", &error);
        let running =
            kiln_server::serve(server.config.clone(), stop.token()).await.map_err(failed)?;
        let tuning = running.tuning();
        stop.on_hangup(move || {
            let new = read()?;
            let kept = [server.reload(&new.server)?, log.reload(&new.log)?].concat();
            tuning.set(&server.config);
            logging.set(&log.config);
            Ok(kept)
        })?;
        cx.printer.note(format!("listening on {}", running.url()));
        running.wait().await.map_err(failed)?;
        Ok(ExitStatus::Succeeded)
    }
}

/// Each agent is a connection or two; the usual limit of a thousand open files is one for programs that still use
/// `select`. Not in a process that runs jobs, which would inherit it.
fn open_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, limit = limit.current, "the limit of open files stays");
    }
}
