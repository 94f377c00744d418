//! Plays rounds, some at a time, each on a thread and a runtime of its own.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result};

use super::{
    Report,
    evidence::Toll,
    fault::{Database, FAULTS, Fault},
    plot,
    process::is_interrupted,
    random::Random,
    world::{World, missing},
};

/// What to play.
#[derive(Debug, Clone)]
pub struct Order {
    /// The `kiln` to play with.
    pub bin: PathBuf,
    /// Of each fault on each database.
    pub rounds: usize,
    /// Only faults whose names begin so.
    pub fault: String,
    /// Only this database.
    pub database: Option<Database>,
    /// Moments and durations come of it.
    pub seed: u64,
    /// Rounds at the same time.
    pub jobs: usize,
    /// Where the words of the processes of a round that failed are kept.
    pub words: PathBuf,
}

#[derive(Debug, Clone, Copy)]
struct Round {
    place: usize,
    fault: &'static Fault,
    database: Database,
    seed: u64,
}

/// Plays all of it; `say` hears what goes wrong while the rest goes on.
pub fn run(order: &Order, say: impl Fn(&str) + Sync) -> Report {
    let mut random = Random::new(order.seed);
    let mut waiting = VecDeque::new();
    for _ in 0..order.rounds {
        for (place, fault) in FAULTS.iter().enumerate() {
            let on = fault.databases().iter().filter(|on| order.database.is_none_or(|d| d == **on));
            let wanted = fault.name.starts_with(&order.fault);
            for &database in on.filter(|_| wanted) {
                // A seed that is given again gives one round again.
                let seed = if order.rounds == 1 { order.seed } else { random.below(u64::MAX) };
                waiting.push_back(Round { place, fault, database, seed });
            }
        }
    }
    let (waiting, report) = (Mutex::new(waiting), Mutex::new(Report::default()));
    // A call of its own: what is locked in the head of a loop stays so for its body, and rounds would take turns.
    let next = || lock(&waiting).pop_front();
    let worker = || {
        while let Some(next) = next() {
            if is_interrupted() {
                return;
            }
            let Round { place, fault, database, seed } = next;
            if let Some(missing) = missing(fault, database) {
                say(&format!("skipped: {} on {}: {missing}", fault.name, database.name()));
                continue;
            }
            let began = Instant::now();
            let played = round(&order.bin, fault, database, seed, &order.words);
            let what = format!(
                "{} on {}, seed {seed}, {} s",
                fault.name,
                database.name(),
                began.elapsed().as_secs()
            );
            let toll = match played {
                Ok(toll) if toll.is_clean() => {
                    say(&format!("clean: {what}"));
                    toll
                }
                Ok(toll) => {
                    say(&format!("NOT CLEAN: {what}: {toll:?}"));
                    toll
                }
                // It ended because we do.
                Err(_) if is_interrupted() => return,
                Err(error) => {
                    say(&format!("FAILED: {what}: {error:#}"));
                    Toll { failed: 1, ..Toll::default() }
                }
            };
            lock(&report).add(place, fault.name, database, toll);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..order.jobs.max(1) {
            scope.spawn(worker);
        }
    });
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Plays one round.
pub fn round(
    bin: &Path,
    fault: &Fault,
    database: Database,
    seed: u64,
    words: &Path,
) -> Result<Toll> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("no runtime")?;
    let played = runtime.block_on(async {
        let mut world = World::start(bin, *fault, database, seed).await?;
        let played = plot::play(&mut world).await;
        if !matches!(&played, Ok(toll) if toll.is_clean()) {
            world.keep_words(&words.join(format!("{}-{}-{seed}", fault.name, database.name())))?;
        }
        played
    });
    runtime.shutdown_background();
    played
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
