//! One file a verb: its flags and what it does. A verb prints through the `Printer` only.

pub(crate) mod admin;
pub(crate) mod agent;
pub(crate) mod agents;
pub(crate) mod artifacts;
pub(crate) mod audit;
pub(crate) mod ca;
pub(crate) mod cancel;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod explain;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod migrate;
pub(crate) mod pages;
pub(crate) mod project;
pub(crate) mod queue;
pub(crate) mod retry;
pub(crate) mod run;
pub(crate) mod secret;
pub(crate) mod server;
pub(crate) mod show;
pub(crate) mod submit;
pub(crate) mod supervise;
pub(crate) mod token;
pub(crate) mod up;
pub(crate) mod version;
pub(crate) mod watch;

use kiln_sdk::Client;

use crate::{
    args::{Command, Global},
    context,
    exit::ExitStatus,
    failure::Failure,
    printer::Printer,
};

/// How a command ends.
pub(crate) type Result<T = ExitStatus> = std::result::Result<T, Failure>;

/// What every command is given.
#[derive(Debug)]
pub(crate) struct Cx<'a> {
    pub(crate) printer: &'a Printer,
    pub(crate) global: Global,
    /// Where builds belong that are submitted.
    pub(crate) traceparent: Option<String>,
}

impl Cx<'_> {
    /// The server that flags, environment and configuration name.
    pub(crate) async fn client(&self) -> Result<Client> {
        let mut options = context::options(&self.global)?;
        options.traceparent.clone_from(&self.traceparent);
        Ok(Client::connect(options).await?)
    }
}

pub(crate) async fn run(cx: Cx<'_>, command: Command) -> Result {
    match command {
        Command::Up(args) => args.run(&cx).await,
        Command::Server(args) => args.run(&cx).await,
        Command::Agent(args) => args.run(&cx).await,
        Command::Migrate(args) => args.run(&cx).await,
        Command::Admin(args) => args.run(&cx).await,
        // `main` runs it without a runtime.
        Command::Supervise(_) => Ok(ExitStatus::Usage),
        Command::Run(args) => args.run(&cx).await,
        Command::Submit(args) => args.run(&cx).await,
        Command::List(args) => args.run(&cx).await,
        Command::Show(args) => args.run(&cx).await,
        Command::Watch(args) => args.run(&cx).await,
        Command::Logs(args) => args.run(&cx).await,
        Command::Cancel(args) => args.run(&cx).await,
        Command::Retry(args) => args.run(&cx).await,
        Command::Explain(args) => args.run(&cx).await,
        Command::Artifacts(args) => args.run(&cx).await,
        Command::Project(args) => args.run(&cx).await,
        Command::Agents(args) => args.run(&cx).await,
        Command::Queue(args) => args.run(&cx).await,
        Command::Audit(args) => args.run(&cx).await,
        Command::Ca(args) => args.run(&cx).await,
        Command::Secret(args) => args.run(&cx).await,
        Command::Token(args) => args.run(&cx).await,
        Command::Completion(args) => args.run(&cx),
        Command::Config(args) => args.run(&cx),
        Command::Version => version::run(&cx),
    }
}
