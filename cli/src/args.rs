//! The command line: what every command takes, and the list of commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cmd;

/// Kiln runs builds: submit a graph of jobs, follow it live, keep what it made.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 succeeded, 1 the build failed, 2 wrong usage, 3 cancelled, 4 no answer from the server."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Address of the server, as http://host:port [env: KILN_SERVER]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// File that holds the bearer token; KILN_TOKEN holds the token itself
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// PEM file of the authority that signed the server's certificate [env: KILN_CA_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Digest of that authority, as sha256:…, in place of its file [env: KILN_CA_FINGERPRINT]
    #[arg(long, global = true, value_name = "DIGEST")]
    pub(crate) ca_fingerprint: Option<String>,
    /// Context of the configuration file to use [env: KILN_CONTEXT]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// How results are written
    #[arg(long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(crate) output: Format,
    /// Print results and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub(crate) color: ColorChoice,
}

impl Global {
    /// What the environment says where no flag does. Read here, as clap would list the flags in each wrong usage.
    pub(crate) fn with_environment(mut self) -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        self.server = self.server.or_else(|| set("KILN_SERVER"));
        self.ca_file = self.ca_file.or_else(|| set("KILN_CA_FILE").map(PathBuf::from));
        self.ca_fingerprint = self.ca_fingerprint.or_else(|| set("KILN_CA_FINGERPRINT"));
        self.context = self.context.or_else(|| set("KILN_CONTEXT"));
        self
    }
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    Auto,
    Always,
    Never,
}

/// One variant a file under `cmd/`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run server, database and one agent in one process
    Up(cmd::up::Args),
    /// Run a server
    Server(cmd::server::Args),
    /// Run an agent, or enrol one
    Agent(cmd::agent::Args),
    /// Bring a database to this version's schema
    Migrate(cmd::migrate::Args),
    /// Back up or restore the embedded database, on the machine of its server
    Admin(cmd::admin::Args),
    /// Supervise one job
    #[command(hide = true)]
    Supervise(cmd::supervise::Args),
    /// Run one command as a build and follow it
    Run(Box<cmd::run::Args>),
    /// Submit a build file
    Submit(cmd::submit::Args),
    /// List builds
    List(cmd::list::Args),
    /// Show a build and its jobs
    Show(cmd::show::Args),
    /// Follow a build until it is done
    Watch(cmd::watch::Args),
    /// Print the log of a job
    Logs(cmd::logs::Args),
    /// Cancel a build or one of its jobs
    Cancel(cmd::cancel::Args),
    /// Run what did not succeed again
    Retry(cmd::retry::Args),
    /// Say why a job waits or why it failed
    Explain(cmd::explain::Args),
    /// List or download what jobs kept
    Artifacts(cmd::artifacts::Args),
    /// Manage projects
    Project(cmd::project::Args),
    /// Manage secrets
    Secret(cmd::secret::Args),
    /// Manage agents
    Agents(cmd::agents::Args),
    /// Show what waits, project by project
    Queue(cmd::queue::Args),
    /// Show what was done by whom
    Audit(cmd::audit::Args),
    /// Manage the authority that certifies servers and agents
    Ca(cmd::ca::Args),
    /// Manage tokens
    Token(cmd::token::Args),
    /// Print a completion script for a shell
    Completion(cmd::completion::Args),
    /// Manage contexts: names for servers
    Config(cmd::config::Args),
    /// Print the version
    Version,
}

impl Command {
    /// What is logged where nobody asks for more. A role that runs on says itself how it logs, once it is configured.
    pub(crate) const fn log_level(&self) -> Option<&'static str> {
        match self {
            Self::Server(_) | Self::Up(_) => None,
            Self::Agent(args) if args.is_role() => None,
            Self::Agent(_) | Self::Migrate(_) | Self::Admin(_) => Some("info"),
            _ => Some("error"),
        }
    }
}
