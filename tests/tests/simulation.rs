//! Seeds of the simulated world. `KILN_SEEDS=n` runs n of them, `KILN_SEED=s` one, with its story.

use std::{
    env,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread,
};

use kiln_tests::simulation;

const SEEDS: u64 = 1_000;

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
