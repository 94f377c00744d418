//! `kiln up`: server, SQLite and one agent in one process.

use std::path::{Path, PathBuf};

use kiln_agent::{Address, Identity};
use kiln_sdk::{
    Client, Options, Trust,
    v1::{CreateTokenRequest, Role},
};
use tokio_util::sync::CancellationToken;

use crate::{
    args::Global,
    cmd::{Cx, Result, agent, server},
    context::{self, ADMIN_TOKEN, AUTHORITIES, Context, File},
    exit::ExitStatus,
    failure::Failure,
    log::{self, Log, LogOptions},
    roles,
    settings::{self, Flags, Part, Settings},
    time,
};

/// The agent's name. One data folder holds one server and one agent.
const AGENT: &str = "local";
/// The context that clients find it by.
const CONTEXT: &str = "local";

/// What `kiln up` decides about its agent.
const DECIDED: &[&str] =
    &["server", "data", "name", "ca_file", "ca_fingerprint", "enroll_token_file"];

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// TOML file as that of `kiln server`, with the agent's fields in [agent]; environment and flags override it
    #[arg(long, value_name = "FILE", env = "KILN_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Folder that keeps everything; /var/lib/kiln as root, else ~/.local/share/kiln [env: KILN_DATA]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address to listen on, as 127.0.0.1:7420 [env: KILN_LISTEN]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Encrypt connections, with a certificate of the server's own authority [env: KILN_TLS_ENABLED]
    #[arg(long)]
    tls: bool,
    /// Label of the agent; repeat for more [env: KILN_AGENT_LABELS, as { key = "value" }]
    #[arg(long, value_name = "KEY=VALUE", value_parser = roles::label)]
    label: Vec<(String, String)>,
    /// Print the configuration as it would be used, and end: 0 where it can be used, 2 where not
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    log: LogOptions,
}

/// The configuration of all that runs in this process.
#[derive(Debug)]
struct Configured {
    server: Part<kiln_server::Config>,
    agent: Part<kiln_agent::Config>,
    log: Part<Log>,
}

impl Args {
    fn read(&self, global: &Global) -> Result<Configured> {
        let flags = Flags::default()
            .set("listen", "--listen", self.listen.clone())
            .path("data", "--data", self.data.as_deref())
            .set("tls.enabled", "--tls", self.tls.then_some(true))
            .entries("agent.labels", "--label", self.label.clone())
            .and(self.log.flags(global));
        let mut settings = Settings::read(self.config.as_deref(), flags)?;
        let log = settings.part("log.", log::PREFIX, &[("filter", log::filter("warn").into())]);
        let base = [("allow_local_git", true.into()), ("name", AGENT.into())];
        let agent = settings.part("agent.", agent::PREFIX, &base);
        settings.reserve(&agent, DECIDED, "is for `kiln up` to decide; remove it");
        let data = settings::path(&context::data_dir());
        let server = settings.part("", server::PREFIX, &[("data", data)]);
        settings.finish()?;
        Ok(Configured { server, agent, log })
    }

    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let Configured { server, agent, log } = self.read(&cx.global)?;
        if self.check_config {
            settings::show(cx, vec![server.shown(), agent.shown(), log.shown()])?;
            return Ok(ExitStatus::Succeeded);
        }
        let logging = log::start(&log.config, cx.printer.colors_err());
        let data = std::path::absolute(&server.config.data_dir)?;
        let config = kiln_server::Config { data_dir: data.clone(), ..server.config.clone() };
        let stop = roles::stop_on_signal(cx.printer)?;
        // The agent ends first: its last words still find a server.
        let server_stop = CancellationToken::new();
        let failed = |error| roles::failed("the server", &error);
        let running = kiln_server::serve(config, server_stop.clone()).await.map_err(failed)?;
        let url = running.url();
        let ca_file = url.starts_with("https://").then(|| data.join(AUTHORITIES));
        let config = kiln_agent::Config {
            server: url.clone(),
            data_dir: data.join("agent"),
            ca_file: ca_file.clone(),
            ..agent.config.clone()
        };
        let configured = Configured { server, agent, log };
        self.follow(cx, &stop, configured, running.tuning(), logging)?;
        let admin = data.join(ADMIN_TOKEN);
        let mut agent = Box::pin(run_agent(config, admin, stop.token()));
        cx.printer.note(format!("listening on {url}, data in {}", data.display()));
        remember(cx, &url, &data, ca_file);
        if url != context::DEFAULT_SERVER {
            cx.printer
                .note(format!("clients find it with KILN_SERVER={url}, or --context {CONTEXT}"));
        }
        let mut server = Box::pin(running.wait());
        tokio::select! {
            ended = &mut server => {
                stop.token().cancel();
                agent.await?;
                ended.map_err(failed)?;
            }
            ended = &mut agent => {
                // A drained agent is gone; the server goes on until it is told to end.
                if ended.is_ok() {
                    stop.token().cancelled().await;
                }
                server_stop.cancel();
                server.await.map_err(failed)?;
                ended?;
            }
        }
        cx.printer.note("stopped");
        Ok(ExitStatus::Succeeded)
    }
}

impl Args {
    /// Reads the configuration again where it is asked to.
    fn follow(
        self,
        cx: &Cx<'_>,
        stop: &roles::Stop,
        mut now: Configured,
        tuning: kiln_server::serve::Tuning,
        logging: log::Handle,
    ) -> Result<()> {
        let global = cx.global.clone();
        stop.on_hangup(move || {
            let new = self.read(&global)?;
            let kept = [
                now.server.reload(&new.server)?,
                now.agent.reload(&new.agent)?,
                now.log.reload(&new.log)?,
            ]
            .concat();
            tuning.set(&now.server.config);
            logging.set(&now.log.config);
            Ok(kept)
        })
    }
}

async fn run_agent(
    config: kiln_agent::Config,
    admin: PathBuf,
    stop: CancellationToken,
) -> Result<()> {
    let kiln_agent::Config { server, data_dir, ca_file, .. } = &config;
    if matches!(Identity::load(data_dir), Err(kiln_agent::identity::Error::NotEnrolled(_))) {
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|e| Failure::file("read", path, &e));
        let ca_pem = ca_file.as_ref().map(read).transpose()?;
        let trust = Trust { ca_pem, ..Trust::default() };
        let token = enroll_token(server, &trust, &admin).await?;
        let address = Address { url: server.clone(), trust };
        agent::enroll(&address, &token, AGENT, data_dir).await?;
    }
    kiln_agent::run(config, stop).await.map_err(|error| agent::failed(&error))
}

async fn enroll_token(url: &str, trust: &Trust, admin: &Path) -> Result<String> {
    let mut options = Options::new(url).token(context::read_secret(admin)?);
    options.trust = trust.clone();
    let client = Client::connect(options).await?;
    let request = CreateTokenRequest {
        // One of an earlier start that did not get further is in nobody's way.
        name: format!("kiln-up-{}", time::now()),
        role: Role::Enroller.into(),
        ..Default::default()
    };
    Ok(client.create_token(request).await?.secret)
}

/// Lets clients of this user find the server. It must not fail for want of a home folder.
fn remember(cx: &Cx<'_>, url: &str, data: &Path, ca_file: Option<PathBuf>) {
    let context = Context {
        server: url.to_owned(),
        token_file: Some(data.join(ADMIN_TOKEN)),
        ca_file,
        ca_fingerprint: None,
    };
    let saved = File::load().and_then(|mut file| {
        if file.contexts.insert(CONTEXT.to_owned(), context.clone()) == Some(context) {
            return Ok(());
        }
        file.save()
    });
    if let Err(Failure { message, .. }) = saved {
        cx.printer.warning(&format!("clients must be told where it is: {message}"));
    }
}
