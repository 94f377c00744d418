//! `kiln agent`: run an agent, or enrol one.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use kiln_agent::{Address, Config};
use kiln_sdk::Trust;

use crate::{
    args::Global,
    cmd::{Cx, Result},
    context::{self, DEFAULT_SERVER},
    exit::ExitStatus,
    failure::Failure,
    log::{self, Log, LogOptions},
    roles,
    settings::{self, Flags, Part, Settings},
};

/// Of the variables that an agent reads.
pub(crate) const PREFIX: &str = "KILN_AGENT_";

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Clone, clap::Args)]
struct RunArgs {
    /// TOML file; environment (KILN_AGENT_…) and flags override it
    #[arg(long, value_name = "FILE", env = "KILN_AGENT_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Folder of the agent's identity and jobs [env: KILN_AGENT_DATA]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Name to enrol as; empty: the host's [env: KILN_AGENT_NAME]
    #[arg(long)]
    name: Option<String>,
    /// Label that jobs can ask for; repeat for more [env: KILN_AGENT_LABELS, as { key = "value" }]
    #[arg(long, value_name = "KEY=VALUE", value_parser = roles::label)]
    label: Vec<(String, String)>,
    /// File with an enrolment token, used where the agent is not enrolled yet [env: KILN_AGENT_ENROLL_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    enroll_token_file: Option<PathBuf>,
    /// Sources may be repositories of this machine [env: KILN_AGENT_ALLOW_LOCAL_GIT]
    #[arg(long)]
    allow_local_git: bool,
    /// Print the configuration as it would be used, and end: 0 where it can be used, 2 where not
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    log: LogOptions,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Turn an enrolment token into this machine's identity
    Enroll {
        /// Name of the agent, unique in the farm
        #[arg(long)]
        name: String,
        /// File with the token that `kiln token create --role enroller` printed
        #[arg(long, value_name = "FILE")]
        enroll_token_file: PathBuf,
        /// Folder of the agent's identity and jobs
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
}

impl Args {
    /// It runs an agent.
    pub(crate) const fn is_role(&self) -> bool {
        self.command.is_none()
    }

    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        match self.command {
            Some(Command::Enroll { name, enroll_token_file, data }) => {
                let address = address(cx)?;
                let token = context::read_secret(&enroll_token_file)?;
                let data = data.unwrap_or_else(data_dir);
                let agent = enroll(&address, &token, &name, &data).await?;
                cx.printer.line(agent)?;
                Ok(ExitStatus::Succeeded)
            }
            None => self.run.run(cx).await,
        }
    }
}

impl RunArgs {
    fn read(&self, global: &Global) -> Result<(Part<Config>, Part<Log>)> {
        let flags = Flags::default()
            .set("server", "--server or KILN_SERVER", global.server.clone())
            .path("data", "--data", self.data.as_deref())
            .set("name", "--name", self.name.clone())
            .path("ca_file", "--ca-file or KILN_CA_FILE", global.ca_file.as_deref())
            .set(
                "ca_fingerprint",
                "--ca-fingerprint or KILN_CA_FINGERPRINT",
                global.ca_fingerprint.clone(),
            )
            .path("enroll_token_file", "--enroll-token-file", self.enroll_token_file.as_deref())
            .set("allow_local_git", "--allow-local-git", self.allow_local_git.then_some(true))
            .entries("labels", "--label", self.label.clone())
            .and(self.log.flags(global));
        let mut settings = Settings::read(self.config.as_deref(), flags)?;
        let log = settings.part("log.", log::PREFIX, &[("filter", log::filter("info").into())]);
        let agent = settings.part("", PREFIX, &[("data", settings::path(&data_dir()))]);
        settings.finish()?;
        Ok((agent, log))
    }

    async fn run(self, cx: &Cx<'_>) -> Result {
        let (mut agent, mut log) = self.read(&cx.global)?;
        if self.check_config {
            settings::show(cx, vec![agent.shown(), log.shown()])?;
            return Ok(ExitStatus::Succeeded);
        }
        let logging = log::start(&log.config, cx.printer.colors_err());
        let config = agent.config.clone();
        cx.printer.note(format!(
            "agent of {}, data in {}",
            config.server,
            config.data_dir.display()
        ));
        let stop = roles::stop_on_signal(cx.printer)?;
        let global = cx.global.clone();
        stop.on_hangup(move || {
            let (new_agent, new_log) = self.read(&global)?;
            let kept = [agent.reload(&new_agent)?, log.reload(&new_log)?].concat();
            logging.set(&log.config);
            Ok(kept)
        })?;
        let identity = config.data_dir.join("identity.json");
        kiln_agent::run(config, stop.token()).await.map_err(|error| match error {
            kiln_agent::Error::Evicted => Failure::new(ExitStatus::Evicted, error.to_string())
                .hint(format!(
                    "to bring this machine back, remove {}, make a token with `kiln token create NAME --role enroller`, and give it by --enroll-token-file",
                    identity.display()
                )),
            error => failed(&error),
        })?;
        Ok(ExitStatus::Succeeded)
    }
}

fn address(cx: &Cx<'_>) -> Result<Address> {
    let Global { server, ca_file, ca_fingerprint, .. } = &cx.global;
    let url = server.clone().unwrap_or_else(|| DEFAULT_SERVER.to_owned());
    let read = |path: &PathBuf| std::fs::read(path).map_err(|e| Failure::file("read", path, &e));
    let ca_pem = ca_file.as_ref().map(read).transpose()?;
    let ca_fingerprint = ca_fingerprint.as_deref().map(context::fingerprint).transpose()?;
    Ok(Address { url, trust: Trust { ca_pem, ca_fingerprint, identity: None } })
}

fn data_dir() -> PathBuf {
    context::data_dir().join("agent")
}

pub(crate) async fn enroll(
    address: &Address,
    token: &str,
    name: &str,
    data: &Path,
) -> Result<String> {
    let identity = kiln_agent::enroll(address, token, name, data).await;
    Ok(identity.map_err(|error| failed(&error))?.agent.to_string())
}

pub(crate) fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    let not_enrolled = "make a token with `kiln token create NAME --role enroller`, and give it by --enroll-token-file";
    let mut failure = roles::failed("the agent", error);
    if let Some(refused) = answer(error) {
        let told = Failure::from(refused);
        failure = Failure { message: format!("the agent: {}", told.message), ..told };
    }
    let ours = ["not enrolled", "another agent uses", "already enrolled"];
    if ours.iter().any(|words| failure.message.contains(words)) {
        failure.status = ExitStatus::Usage;
    }
    if failure.message.contains("not enrolled") { failure.hint(not_enrolled) } else { failure }
}

/// What the server said, where it is the cause.
fn answer<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a kiln_sdk::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(answer) = error.downcast_ref() {
            return Some(answer);
        }
        next = match error.downcast_ref() {
            Some(kiln_agent::identity::Error::Refused(answer)) => return Some(answer),
            None | Some(_) => error.source(),
        };
    }
    None
}
