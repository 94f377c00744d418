//! Each fault of the list once, on real processes, on the one database or the other. `make chaos` does more of it.

#![allow(clippy::print_stdout, reason = "the rig looks for what is skipped")]
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::path::PathBuf;

use kiln_tests::chaos::{FAULTS, missing, round, seed};

/// Makes a test of each fault that is named.
macro_rules! faults {
    ($($name:ident,)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { play(stringify!($name)); })*
    };
}

faults! {
    kill_server,
    kill_agent,
    kill_both,
    kill_postgres,
    kill_all,
    term_server,
    term_agent,
    term_postgres,
    agent_refused,
    agent_reset,
    agent_silent,
    agent_half_open,
    agent_slow,
    database_refused,
    database_reset,
    database_silent,
    database_half_open,
    database_slow,
    full_disk_agent,
    full_disk_server,
    clock_server_forward,
    clock_server_back,
    clock_agent_forward,
    clock_agent_back,
    long_outage_server,
    long_outage_postgres,
    long_freeze_server,
    long_freeze_postgres,
    cancel_kill_server,
    cancel_kill_agent,
    cancel_kill_both,
    cancel_agent_refused,
    cancel_full_disk_agent,
    lost_agent,
    frozen_agent,
    silent_agent,
    cancel_lost_agent,
    exclusive_lost_agent,
    exclusive_frozen_agent,
    exclusive_silent_agent,
    exclusive_kill_both,
}

#[test]
fn each_fault_is_tested() {
    let listed: Vec<_> = FAULTS.iter().map(|fault| fault.name.replace('-', "_")).collect();
    assert_eq!(listed, TESTED);
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn binary() -> PathBuf {
    if let Some(named) = variable("KILN_BIN") {
        return named.into();
    }
    // target/debug/deps/chaos-… has target/debug/kiln two steps up.
    let built = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("kiln");
    assert!(built.exists(), "{} is not there: cargo build -p kiln", built.display());
    built
}

fn play(name: &str) {
    let at = FAULTS.iter().position(|fault| fault.name.replace('-', "_") == name).unwrap();
    let fault = &FAULTS[at];
    let database = fault.databases()[at % fault.databases().len()];
    if let Some(missing) = missing(fault, database) {
        assert!(variable("KILN_TEST_REQUIRE").as_deref() != Some("1"), "{missing}");
        println!("skipped: {missing}");
        return;
    }
    let seed = seed().unwrap();
    let words = std::env::temp_dir().join("kiln-chaos");
    let on = database.name();
    let again = format!(
        "make chaos FAULT={} DB={on} SEED={seed}; what its processes said is in {}",
        fault.name,
        words.display()
    );
    let toll = round(&binary(), fault, database, seed, &words);
    let toll = toll.unwrap_or_else(|error| panic!("{error:#}\nagain: {again}"));
    assert!(toll.is_clean(), "{toll:?}\nagain: {again}");
}
