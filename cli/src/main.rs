//! The one binary `kiln`: every role is a subcommand, everything else is a client over gRPC.

mod args;
mod build_file;
mod cmd;
mod context;
mod exit;
mod failure;
mod follow;
mod json;
mod log;
mod names;
mod pack;
mod printer;
mod roles;
mod secrets;
mod settings;
mod table;
mod telemetry;
mod time;
mod units;
mod words;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    // It outlives its agent and has a runtime of its own.
    if let args::Command::Supervise(args) = cli.command {
        return args.run();
    }
    let printer = printer::Printer::new(&cli.global);
    if let Some(level) = cli.command.log_level() {
        log::start_command(&cli.global, level, printer.colors_err());
    }
    match runtime(&printer, cli.global.with_environment(), cli.command) {
        Ok(status) => status.into(),
        Err(failure) => printer.failure(&failure).into(),
    }
}

fn runtime(
    printer: &printer::Printer,
    global: args::Global,
    command: args::Command,
) -> cmd::Result {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(Box::pin(async {
        let telemetry = telemetry::Telemetry::start(&command)?;
        let cx = cmd::Cx { printer, global, traceparent: telemetry.traceparent() };
        let result = cmd::run(cx, command).await;
        telemetry.end(result.as_ref().err().map(|failure| failure.message.clone())).await;
        result
    }));
    // A thread that still waits for a terminal must not hold the process.
    runtime.shutdown_background();
    result
}
