//! The built `kiln` as processes of this machine, on SQLite and on a real Postgres, with real containers: what a person would see.
//! Servers come from the rig (`eval "$(rig/up)"`); the binary from `cargo build -p kiln`, or from where KILN_BIN says.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may fail"
)]

#[path = "rig_real/basics.rs"]
mod basics;
#[path = "rig_real/failures.rs"]
mod failures;
#[path = "rig_real/harness.rs"]
mod harness;
#[path = "rig_real/process.rs"]
mod process;
#[path = "rig_real/secrets.rs"]
mod secrets;
#[path = "rig_real/survival.rs"]
mod survival;
