//! A small fuzzer that runs on stable Rust: valid inputs and those of `tests/corpus/NAME` are changed at random and given
//! to a target, which must neither panic nor break its own rules. What breaks one is written to the corpus: fixed and
//! committed, it is tried first for ever.
//!
//! `KILN_FUZZ_CASES=n` runs n inputs a target, `KILN_FUZZ_SEED=s` begins elsewhere.

#![expect(clippy::print_stdout, reason = "it runs in tests only, and says what it found")]

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
};

use sha2::{Digest, Sha256};

use crate::chance::Chance;

/// Enough to find what is near, in a second or two.
const CASES: usize = 20_000;
/// Changes to one input.
const MOST_CHANGES: usize = 6;
/// Inputs grow no further.
const MOST_BYTES: usize = 64 << 10;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// Gives the target its corpus, the seeds, and what becomes of them.
///
/// # Panics
/// Where the target does, once the input is in the corpus.
pub fn fuzz(name: &str, seeds: Vec<Vec<u8>>, target: impl Fn(&[u8])) {
    let folder = corpus(name);
    let mut inputs = seeds;
    let found = fs::read_dir(&folder).into_iter().flatten().flatten();
    inputs.extend(found.filter_map(|file| fs::read(file.path()).ok()));
    assert!(!inputs.is_empty(), "{name} has nothing to begin with");
    for input in &inputs {
        attempt(name, input, &target);
    }
    let cases =
        number("KILN_FUZZ_CASES").map_or(CASES, |cases| usize::try_from(cases).unwrap_or(CASES));
    let seed = number("KILN_FUZZ_SEED").unwrap_or(1);
    for case in 0..cases as u64 {
        let mut chance = Chance::new(seed.wrapping_add(case.wrapping_mul(0x9E37_79B9)));
        let mut input = chance.pick(&inputs).unwrap_or_default();
        for _ in 0..=chance.below(MOST_CHANGES) {
            change(&mut input, &inputs, &mut chance);
        }
        input.truncate(MOST_BYTES);
        attempt(name, &input, &target);
    }
    println!("{name}: {cases} inputs from {} seeds", inputs.len());
}

fn attempt(name: &str, input: &[u8], target: &impl Fn(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        let digest = Sha256::digest(input);
        let path =
            corpus(name).join(format!("found-{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2]));
        let kept = fs::write(&path, input);
        println!("{name}: this input breaks it: {} ({kept:?})", path.display());
        resume_unwind(panic);
    }
}

/// One change of the kinds that parsers fear.
fn change(input: &mut Vec<u8>, others: &[Vec<u8>], chance: &mut Chance) {
    let at = chance.below(input.len() + 1);
    let end = at + chance.below(input.len() - at + 1).min(64);
    match chance.below(8) {
        0 if at < input.len() => input[at] ^= 1 << chance.below(8),
        1 if at < input.len() => {
            input[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][chance.below(6)];
        }
        2 => input.insert(at, u8::try_from(chance.below(256)).unwrap_or(0)),
        3 => drop(input.drain(at..end)),
        4 => {
            let again = input[at..end].to_vec();
            drop(input.splice(at..at, again));
        }
        // A number of ten bytes where one of one byte was.
        5 => drop(input.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1])),
        6 => {
            let other = chance.pick(others).unwrap_or_default();
            let from = chance.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => input.truncate(at),
    }
}
