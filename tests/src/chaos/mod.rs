//! Faults on real processes: a server, agents, a database, and a job that prints numbered lines while something breaks.
//!
//! A fault is one line of [`FAULTS`]: what is struck, for how long, and what must hold then ([`Plot`]). A round starts
//! everything anew in a folder of its own, strikes at a moment that its seed chooses, and compares bytes. Rounds of
//! different faults disturb each other in nothing but time, so that many run at once.

mod blow;
mod evidence;
mod fault;
mod plot;
mod postgres;
mod process;
mod proxy;
mod random;
mod report;
mod runner;
mod world;

pub use blow::{Blow, Cut, Line, Who};
pub use evidence::Toll;
pub use fault::{Database, FAULTS, Fault, Outage, Plot};
pub use process::{interrupt, left_in};
pub use random::seed;
pub use report::Report;
pub use runner::{Order, round, run};
pub use world::missing;
