//! Seeds of the simulated world. `KILN_SEEDS=n` runs n of them, `KILN_SEED=s` one.

use std::{
    env,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread,
};

use kiln_tests::simulation::{self, Fault};

/// What two processors do in about a minute without optimisation; `make simulate` runs more, and faster.
const SEEDS: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

#[test]
fn every_build_ends_and_nothing_runs_twice() {
    if let Some(seed) = number("KILN_SEED") {
        let stats = simulation::run(seed).unwrap_or_else(|broken| panic!("\n{broken}"));
        println!("{stats:?}");
        return;
    }
    let seeds = number("KILN_SEEDS").unwrap_or(SEEDS);
    let (next, faults, leases) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    let stats = simulation::run(seed).unwrap_or_else(|broken| panic!("\n{broken}"));
                    faults.fetch_add(stats.faults, Ordering::Relaxed);
                    leases.fetch_add(stats.leases, Ordering::Relaxed);
                }
            });
        }
    });
    let (faults, leases) = (faults.into_inner(), leases.into_inner());
    println!("{seeds} seeds, {leases} leases, {faults} faults");
    assert!(
        leases as u64 > seeds && faults as u64 > seeds,
        "the world was too quiet to prove anything"
    );
}

/// The first seed that finds the fault, and its story.
fn found(fault: Fault) -> simulation::Broken {
    let broken = (0..200).find_map(|seed| simulation::run_with(seed, Some(fault)).err());
    broken.unwrap_or_else(|| panic!("no seed finds {fault:?}"))
}

#[test]
fn a_job_that_is_started_twice_is_found_and_its_story_is_short() {
    let broken = found(Fault::StartsAgain);
    assert!(broken.message.contains("was started 2 times"), "{broken}");
    let faults: Vec<_> = broken.story.iter().take_while(|line| !line.contains("heals")).collect();
    // A build, a machine that takes it, its crash; what it does wrong comes when the world heals.
    assert!(faults.len() <= 12 && faults.iter().any(|line| line.contains("crashes")), "{broken}");
    assert!(broken.story.iter().any(|line| line.contains("starts again")), "{broken}");
}

#[test]
fn a_journal_that_loses_entries_is_found() {
    let broken = found(Fault::LosesEntries);
    assert!(!broken.story.is_empty(), "{broken}");
}
