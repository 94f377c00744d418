//! A value that must not be seen, its name, and their limits.
//!
//! A value is never shown by `Debug` and is wiped when it is dropped. It has no `Serialize`: nothing that is stored,
//! journaled or logged can hold one by accident.

use std::fmt;

use zeroize::Zeroize;

/// Bytes of a name.
const MAX_NAME: usize = 128;
/// Bytes of one value: a key or a certificate chain fits, a file of data does not.
pub const MAX_VALUE: usize = 64 << 10;
/// Names that one job asks for.
pub const MAX_OF_JOB: usize = 32;
/// Bytes of all values of one job: a Welcome repeats those of each lease that its agent holds.
pub const MAX_BYTES_OF_JOB: usize = 128 << 10;
/// Secrets of one project.
pub const MAX_OF_PROJECT: usize = 256;
/// Secrets that are given with one build.
pub const MAX_OF_BUILD: usize = 32;

/// A secret as a job gets it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    pub name: String,
    pub value: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

/// Whether a secret may have this name: `[A-Z_][A-Z0-9_]*`, at most 128 bytes. It becomes the name of a file.
pub fn is_secret_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && !text.as_bytes()[0].is_ascii_digit()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// What is wrong with a value, which is never repeated. One of white space alone could not be masked.
pub fn value_fault(value: &[u8]) -> Option<&'static str> {
    if value.len() > MAX_VALUE {
        return Some(
            "must have at most 65,536 bytes; put larger data into an artifact or encrypt it",
        );
    }
    value.trim_ascii().is_empty().then_some("must have at least one byte that is no white space")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upper_case_words() {
        for good in ["A", "_", "TOKEN_2", &"A".repeat(128)] {
            assert!(is_secret_name(good), "{good:?}");
        }
        for bad in ["", "2A", "a", "A-B", "../A", "A\0", "Ä", &"A".repeat(129)] {
            assert!(!is_secret_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn values_have_limits_and_are_not_shown() {
        assert_eq!(value_fault(b"x"), None);
        assert_eq!(value_fault(&vec![1; MAX_VALUE]), None);
        assert!(value_fault(&vec![1; MAX_VALUE + 1]).is_some());
        assert!(value_fault(b"").is_some() && value_fault(b" \n").is_some());
        let secret = Secret { name: "TOKEN".into(), value: b"hush".to_vec() };
        let shown = format!("{secret:?} {secret:#?}");
        assert!(shown.contains("TOKEN") && !shown.contains("hush") && !shown.contains("104"));
    }
}
