//! `make chaos`: breaks a real Kiln in every way of [`FAULTS`], and prints what it cost.
//!
//! `kiln-chaos [--rounds N] [--fault PREFIX] [--database sqlite|postgres] [--seed N] [--jobs N] [--words DIR]`. The
//! program to break is the one that KILN_BIN names. Exit code 0: nothing was lost, doubled, run again or failed.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what it says is what it is for")]

use std::{env, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail, ensure};
use kiln_tests::chaos::{Database, FAULTS, Order, interrupt, run, seed};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> Result<ExitCode> {
    let order = order(env::args().skip(1))?;
    println!("seed {}, {} rounds at a time", order.seed, order.jobs);
    stop_on_signal()?;
    let report = run(&order, |words| eprintln!("{words}"));
    print!("{report}");
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn order(mut args: impl Iterator<Item = String>) -> Result<Order> {
    let bin = env::var_os("KILN_BIN").context("KILN_BIN names no kiln to break")?;
    let mut order = Order {
        bin: bin.into(),
        rounds: 1,
        fault: String::new(),
        database: None,
        seed: seed()?,
        jobs: std::thread::available_parallelism()?.get() * 3,
        words: PathBuf::from("target/chaos"),
    };
    while let Some(name) = args.next() {
        let value = args.next().with_context(|| format!("{name} needs a value"))?;
        let number = || value.parse().with_context(|| format!("{name} {value}: not a number"));
        match name.as_str() {
            "--rounds" => order.rounds = number()?,
            "--jobs" => order.jobs = number()?,
            "--seed" => order.seed = value.parse().context("--seed: not a number")?,
            "--words" => order.words = value.into(),
            "--database" => {
                let all = [Database::Sqlite, Database::Postgres];
                let named = all.into_iter().find(|database| database.name() == value);
                order.database = Some(named.context("--database: sqlite or postgres")?);
            }
            "--fault" => order.fault = value,
            _ => bail!("unknown argument {name}"),
        }
    }
    let names: Vec<_> = FAULTS.iter().map(|fault| fault.name).collect();
    let known = names.iter().any(|name| name.starts_with(&order.fault));
    ensure!(known, "--fault {}: not one of {}", order.fault, names.join(", "));
    Ok(order)
}

/// The rounds end, each clears up, and what was found is printed.
fn stop_on_signal() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupted.recv() => {}
                _ = terminated.recv() => {}
            }
        });
        interrupt();
    });
    Ok(())
}
