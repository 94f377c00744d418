//! The product's own use cases, session and lease code, on the memory store, in a world of scripted agents.
//!
//! A seed decides everything: which frame is delivered next, which stream is cut, who crashes, when time passes. After a
//! while the world heals; then every build must end, and what the rows say must agree with what the processes did.
//! A seed that breaks a rule is shortened to the steps that matter, and tells its story. No socket, no database, no real
//! time.

mod agent;
mod check;
mod clock;
mod plan;
mod shrink;
mod story;
mod world;

pub use agent::Fault;
pub use story::{Broken, Stats};

use plan::{Step, plan};
use world::World;

/// How often a failed plan is run to make it short.
const SHRINKS: usize = 500;

/// Runs one seed to its end.
pub fn run(seed: u64) -> Result<Stats, Broken> {
    run_with(seed, None)
}

/// Runs one seed in a world whose machines have a fault: it proves that the rules are watched.
pub fn run_with(seed: u64, fault: Option<Fault>) -> Result<Stats, Broken> {
    let whole = plan(seed);
    let play = |plan: &[Step], telling| play(seed, plan, fault, telling);
    let first = match play(&whole, false) {
        Err(broken) => broken,
        lived => return lived,
    };
    let short = shrink::shrink(whole, SHRINKS, |plan| play(plan, false).is_err());
    // Should a run depend on more than its seed, the first message is better than none.
    Err(play(&short, true).err().unwrap_or(first))
}

fn play(seed: u64, plan: &[Step], fault: Option<Fault>, telling: bool) -> Result<Stats, Broken> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| Broken { seed, message: error.to_string(), story: vec![] })?;
    runtime.block_on(async {
        tokio::time::pause();
        let mut world = World::new(fault, telling).await;
        let result = live(&mut world, seed, plan).await;
        world.end().await;
        match result {
            Ok(()) => Ok(world.stats()),
            Err(message) => Err(Broken { seed, message, story: world.into_story() }),
        }
    })
}

async fn live(world: &mut World, seed: u64, plan: &[Step]) -> Result<(), String> {
    for step in plan {
        world.perform(*step).await?;
        check::exclusive(world)?;
    }
    world.heal(seed).await?;
    check::all(world).await
}
