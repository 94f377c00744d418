//! Secrets out of logs: every byte that belongs to a secret becomes `*`, so that offsets never move.
//!
//! Masking is a function of the text alone: whoever reads from an offset on looks back by the longest secret, and keeps
//! back a tail that may begin one. So chunks and resumes give the bytes that masking the whole text would give.

use std::collections::BTreeSet;

use aho_corasick::AhoCorasick;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};

use crate::run::Secret;

/// Lines and encodings shorter than this are words that logs are full of.
const MIN_DERIVED: usize = 6;

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
        // Secrets of gigabytes fit no automaton: then nothing is shown.
        let finder = AhoCorasick::new(&patterns)
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
    patterns.insert(trimmed.to_vec());
    let lines: Vec<_> = trimmed.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).collect();
    if lines.len() > 1 {
        patterns.extend(lines.iter().filter(|line| line.len() >= MIN_DERIVED).map(|l| l.to_vec()));
    }
    for text in [value, trimmed] {
        for alignment in 0..3 {
            encoded(text, alignment, patterns);
        }
    }
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
            patterns.insert(own.to_vec());
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
