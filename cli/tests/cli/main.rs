//! The real binary against a real server in this process: exit code, standard output and standard error in one picture.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod admin;
mod context;
mod errors;
mod help;
mod roles;
mod traces;
mod units;
mod up;
mod verbs;

use context::Context;
