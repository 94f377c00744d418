//! The product's own use cases, session and lease code, on the memory store, in a world of scripted agents.
//!
//! A seed decides everything: which frame is delivered next, which stream is cut, who crashes, when time passes. After a
//! while the world heals; then every build must end, and what the rows say must agree with what the processes did.
//! No socket, no database, no real time.

mod agent;
mod check;
mod clock;
mod story;
mod world;

pub use story::{Broken, Stats};
use world::World;

/// Steps with faults, before the world heals.
const STEPS: u32 = 400;

/// Runs one seed to its end. One that breaks a rule is run again to tell its story.
pub fn run(seed: u64) -> Result<Stats, Broken> {
    play(seed, false).or_else(|_| play(seed, true))
}

fn play(seed: u64, telling: bool) -> Result<Stats, Broken> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| Broken { seed, message: error.to_string(), story: vec![] })?;
    runtime.block_on(async {
        tokio::time::pause();
        let mut world = World::new(seed, telling).await;
        let result = live(&mut world).await;
        world.end().await;
        match result {
            Ok(()) => Ok(world.stats()),
            Err(message) => Err(Broken { seed, message, story: world.into_story() }),
        }
    })
}

async fn live(world: &mut World) -> Result<(), String> {
    for _ in 0..STEPS {
        world.step().await?;
        check::exclusive(world)?;
    }
    world.heal().await?;
    check::all(world).await
}
