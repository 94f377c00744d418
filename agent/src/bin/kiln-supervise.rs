//! A stand-in for `kiln supervise` in the tests of this crate, which can't build the one binary.

use std::{env::args_os, path::Path, process::ExitCode};

fn main() -> ExitCode {
    match args_os().skip(1).collect::<Vec<_>>().as_slice() {
        [verb, spec] if verb == "supervise" => kiln_agent::supervise(Path::new(spec)),
        _ => ExitCode::FAILURE,
    }
}
