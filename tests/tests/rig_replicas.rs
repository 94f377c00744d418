//! Several `kiln server` processes on one Postgres and one bucket act as one: what a person would see who does not know
//! which of them answers. Both come from the rig (`eval "$(rig/up)"`), the binary from `cargo build -p kiln`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may fail"
)]

#[path = "rig_replicas/balancer.rs"]
mod balancer;
#[path = "rig_replicas/crash.rs"]
mod crash;
#[path = "rig_replicas/farm.rs"]
mod farm;
#[allow(
    dead_code,
    unused_macros,
    unused_imports,
    reason = "it is shared, and a farm needs less of it"
)]
#[path = "rig_real/harness.rs"]
mod harness;
#[path = "rig_real/process.rs"]
mod process;
#[path = "rig_replicas/rolling.rs"]
mod rolling;
#[path = "rig_replicas/together.rs"]
mod together;
