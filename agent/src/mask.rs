//! Secrets out of logs: every byte that belongs to a secret becomes `*`, so that offsets never move.
//!
//! Masking is a function of the text alone: whoever reads from an offset on looks back by the longest secret, and keeps
//! back a tail that may begin one. So chunks and resumes give the bytes that masking the whole text would give.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, AhoCorasickKind};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};

use crate::run::Secret;

/// Lines and encodings shorter than this are words that logs are full of.
const MIN_DERIVED: usize = 6;
/// Longer forms are looked for piece by piece, so that a large secret neither delays the log by its own length nor
/// shows where only a part of it is printed.
const PIECE: usize = 128;
/// Where `base64` and `openssl` break lines.
const WRAPS: [usize; 2] = [76, 64];
/// Bytes of patterns up to which the fastest automaton is worth its memory, about a KiB for each byte.
const SMALL: usize = 4 << 10;

/// Finds the secrets of one lease.
#[derive(Debug)]
pub struct Masker {
    finder: Finder,
    patterns: Vec<Vec<u8>>,
    longest: usize,
}

#[derive(Debug)]
enum Finder {
    Nothing,
    Secrets(Box<AhoCorasick>),
    Everything,
}

impl Masker {
    /// Also knows each line of a secret and what base64 makes of it.
    pub fn new(secrets: &[Secret]) -> Self {
        let mut patterns = BTreeSet::new();
        for secret in secrets {
            forms(&secret.value, &mut patterns);
        }
        let patterns: Vec<_> = patterns.into_iter().collect();
        if patterns.is_empty() {
            return Self { finder: Finder::Nothing, patterns, longest: 0 };
        }
        let longest = patterns.iter().map(Vec::len).max().unwrap_or(0);
        let small = patterns.iter().map(Vec::len).sum::<usize>() <= SMALL;
        let kind = if small { AhoCorasickKind::DFA } else { AhoCorasickKind::ContiguousNFA };
        // Secrets of gigabytes fit no automaton: then nothing is shown.
        let finder = AhoCorasickBuilder::new()
            .kind(Some(kind))
            .build(&patterns)
            .map_or(Finder::Everything, |finder| Finder::Secrets(Box::new(finder)));
        Self { finder, patterns, longest }
    }

    /// How many bytes before an offset decide over the bytes behind it.
    pub fn lookback(&self) -> usize {
        self.longest.saturating_sub(1)
    }

    /// Masks the text where it lies.
    pub fn mask(&self, text: &mut [u8]) {
        let finder = match &self.finder {
            Finder::Nothing => return,
            Finder::Secrets(finder) => finder,
            Finder::Everything => return text.fill(b'*'),
        };
        let mut covered: Vec<(usize, usize)> = vec![];
        for found in finder.find_overlapping_iter(&*text) {
            match covered.last_mut() {
                // Matches come in the order of their ends.
                Some((start, end)) if found.start() <= *end => {
                    *start = found.start().min(*start);
                    *end = found.end();
                }
                _ => covered.push((found.start(), found.end())),
            }
        }
        for (start, end) in covered {
            text[start..end].fill(b'*');
        }
    }

    /// How many bytes at the end of the (unmasked) text may be the beginning of a secret.
    pub fn undecided(&self, text: &[u8]) -> usize {
        let most = self.lookback().min(text.len());
        let begins = |tail: &[u8]| {
            self.patterns.iter().any(|secret| secret.len() > tail.len() && secret.starts_with(tail))
        };
        (1..=most).rev().find(|&length| begins(&text[text.len() - length..])).unwrap_or(0)
    }
}

fn forms(value: &[u8], patterns: &mut BTreeSet<Vec<u8>>) {
    let trimmed = value.trim_ascii();
    if trimmed.is_empty() {
        return;
    }
    insert(trimmed, patterns);
    let lines: Vec<_> = trimmed.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).collect();
    if lines.len() > 1 {
        lines.iter().filter(|line| line.len() >= MIN_DERIVED).for_each(|l| insert(l, patterns));
    }
    for text in [value, trimmed] {
        for alignment in 0..3 {
            encoded(text, alignment, patterns);
        }
        let whole = STANDARD.encode(text);
        for width in WRAPS.into_iter().filter(|width| whole.len() > *width) {
            let lines = whole.as_bytes().chunks(width).filter(|line| line.len() >= MIN_DERIVED);
            lines.for_each(|line| insert(line, patterns));
        }
    }
}

/// In pieces that cover all of it.
fn insert(form: &[u8], patterns: &mut BTreeSet<Vec<u8>>) {
    let pieces = form.chunks_exact(PIECE);
    patterns.extend(pieces.map(<[u8]>::to_vec));
    patterns.insert(form[form.len().saturating_sub(PIECE)..].to_vec());
}

/// What base64 makes of the secret when it stands `alignment` bytes behind a multiple of three, without the characters
/// that also depend on its neighbours.
fn encoded(value: &[u8], alignment: usize, patterns: &mut BTreeSet<Vec<u8>>) {
    let mut padded = vec![0; alignment];
    padded.extend_from_slice(value);
    let skip = [0, 2, 3][alignment];
    let keep = padded.len() * 8 / 6;
    for engine in [STANDARD, URL_SAFE] {
        let text = engine.encode(&padded);
        let own = text.as_bytes().get(skip..keep).unwrap_or_default();
        if own.len() >= MIN_DERIVED {
            insert(own, patterns);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masker(secrets: &[&[u8]]) -> Masker {
        let secrets: Vec<_> = secrets
            .iter()
            .map(|value| Secret { name: "s".into(), value: value.to_vec() })
            .collect();
        Masker::new(&secrets)
    }

    fn masked(masker: &Masker, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        masker.mask(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    /// Every occurrence of every pattern, by hand.
    fn naive(masker: &Masker, text: &[u8]) -> Vec<u8> {
        let mut out = text.to_vec();
        for pattern in &masker.patterns {
            for start in 0..text.len() {
                if text[start..].starts_with(pattern) {
                    out[start..start + pattern.len()].fill(b'*');
                }
            }
        }
        out
    }

    #[test]
    fn overlapping_secrets_are_covered_whole() {
        let masker = masker(&[b"abcab", b"bc", b"cabx"]);
        assert_eq!(masked(&masker, "-abcabx- bc -"), "-******- ** -");
    }

    #[test]
    fn lines_and_base64_are_secrets_too() {
        let key = b"-----BEGIN KEY-----\nsecretline1\nsecretline2\n-----END KEY-----\n";
        let masker = masker(&[key, b"hunter2-hunter2"]);
        assert_eq!(masked(&masker, "x secretline2 y"), "x *********** y");
        for prefix in ["", "u", "us", "usr"] {
            let code = STANDARD.encode(format!("{prefix}hunter2-hunter2:rest"));
            let shown = masked(&masker, &code);
            assert!(shown.matches('*').count() >= 17, "{code} became {shown}");
        }
    }

    #[test]
    fn a_large_secret_is_masked_however_it_is_printed() {
        let value: Vec<u8> =
            (0..60_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
        let masker = masker(&[&value]);
        assert!(masker.lookback() < PIECE);
        let whole = STANDARD.encode(&value);
        let lines = |width: usize| {
            let lines = whole.as_bytes().chunks(width).map(|line| [line, b"\n"].concat());
            lines.collect::<Vec<_>>().concat()
        };
        for printed in [value, whole.clone().into_bytes(), lines(76), lines(64)] {
            let mut text = [b"x ", &printed[..], b" y"].concat();
            masker.mask(&mut text);
            assert!(text.starts_with(b"x *") && text.ends_with(b" y"));
            let shown =
                text[2..text.len() - 2].iter().filter(|&&b| b != b'*' && b != b'\n').count();
            assert!(shown <= MIN_DERIVED, "{shown} bytes of {}", printed.len());
        }
    }

    #[test]
    fn nothing_is_masked_without_secrets() {
        let masker = masker(&[b"", b"\n"]);
        assert_eq!(masked(&masker, "a\nb"), "a\nb");
        assert_eq!(masker.undecided(b"abc"), 0);
    }

    proptest! {
        #[test]
        fn chunks_and_resumes_equal_the_whole(
            text in "[abc]{0,200}",
            secrets in prop::collection::vec("[abc]{1,8}", 0..4),
            cuts in prop::collection::vec(1_usize..20, 1..60),
        ) {
            let secrets: Vec<_> = secrets.iter().map(String::as_bytes).collect();
            let masker = masker(&secrets);
            let text = text.as_bytes();
            let (mut out, mut written) = (vec![], 0);
            for cut in cuts {
                // The writer goes on, the reader resumes from what is out.
                written = (written + cut).min(text.len());
                let from = out.len() - masker.lookback().min(out.len());
                let mut window = text[from..written].to_vec();
                let safe = written - masker.undecided(&window);
                masker.mask(&mut window);
                if safe > out.len() {
                    let start = out.len();
                    out.extend_from_slice(&window[start - from..safe - from]);
                }
            }
            prop_assert_eq!(&out[..], &naive(&masker, text)[..out.len()]);
            if written == text.len() {
                let from = out.len() - masker.lookback().min(out.len());
                let mut window = text[from..].to_vec();
                masker.mask(&mut window);
                let start = out.len();
                out.extend_from_slice(&window[start - from..]);
                prop_assert_eq!(out, naive(&masker, text));
            }
        }
    }
}
