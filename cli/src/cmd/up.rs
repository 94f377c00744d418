//! `kiln up`: server, SQLite and one agent in one process.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use kiln_agent::Identity;
use kiln_sdk::{
    Client, Options,
    v1::{CreateTokenRequest, Role},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cmd::{Cx, Result, agent, server},
    context::{self, ADMIN_TOKEN, Context, File},
    exit::ExitStatus,
    failure::Failure,
    roles, time,
};

/// The agent's name. One data folder holds one server and one agent.
const AGENT: &str = "local";
/// The context that clients find it by.
const CONTEXT: &str = "local";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder that keeps everything [default: /var/lib/kiln as root, else ~/.local/share/kiln]
    #[arg(long, value_name = "DIR", env = "KILN_DATA", hide_env_values = true)]
    data: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7420")]
    listen: SocketAddr,
    /// Label of the agent; repeat for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = roles::label)]
    label: Vec<(String, String)>,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let data = std::path::absolute(self.data.unwrap_or_else(context::data_dir))?;
        let mut config = kiln_server::Config {
            listen: self.listen,
            data_dir: data.clone(),
            ..kiln_server::Config::default()
        };
        roles::set(&mut config.secrets.key, roles::secrets_key());
        server::check(&config)?;
        let stop = roles::stop_on_signal(cx.printer)?;
        // The agent ends first: its last words still find a server.
        let server_stop = CancellationToken::new();
        let failed = |error| roles::failed("the server", &error);
        let running = kiln_server::serve(config, server_stop.clone()).await.map_err(failed)?;
        let url = format!("http://{}", reachable(running.addr));
        let mut agent = Box::pin(run_agent(url.clone(), data.clone(), self.label, stop.token()));
        cx.printer.note(format!("listening on {url}, data in {}", data.display()));
        remember(cx, &url, &data);
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

/// Where a server can be reached from this machine that listens everywhere.
fn reachable(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), addr.port()),
        _ => addr,
    }
}

async fn run_agent(
    url: String,
    data: PathBuf,
    labels: Vec<(String, String)>,
    stop: CancellationToken,
) -> Result<()> {
    let folder = data.join("agent");
    if matches!(Identity::load(&folder), Err(kiln_agent::identity::Error::NotEnrolled(_))) {
        let token = enroll_token(&url, &data.join(ADMIN_TOKEN)).await?;
        agent::enroll(&url, None, &token, AGENT, &folder).await?;
    }
    let config = kiln_agent::Config {
        server: url,
        data_dir: folder,
        name: AGENT.to_owned(),
        labels: labels.into_iter().collect(),
        allow_local_git: true,
        ..kiln_agent::Config::default()
    };
    kiln_agent::run(config, stop).await.map_err(|error| agent::failed(&error))
}

async fn enroll_token(url: &str, admin: &Path) -> Result<String> {
    let secret = context::read_secret(admin)?;
    let client = Client::connect(Options::new(url).token(secret)).await?;
    let request = CreateTokenRequest {
        // One of an earlier start that did not get further is in nobody's way.
        name: format!("kiln-up-{}", time::now()),
        role: Role::Enroller.into(),
        ..Default::default()
    };
    Ok(client.create_token(request).await?.secret)
}

/// Lets clients of this user find the server. It must not fail for want of a home folder.
fn remember(cx: &Cx<'_>, url: &str, data: &Path) {
    let context =
        Context { server: url.to_owned(), token_file: Some(data.join(ADMIN_TOKEN)), ca_file: None };
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
