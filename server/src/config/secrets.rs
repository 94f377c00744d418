//! `[secrets]`: where the keys are that encrypt secrets at rest.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Stands for keys that are there.
const HIDDEN: &str = "…";

/// How secrets are encrypted. Without either, a server with SQLite makes a key in its data folder, and one with Postgres
/// takes no secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Secrets {
    /// File of keys, each 32 bytes in base64 on a line of its own. The first encrypts, all decrypt.
    pub key_file: Option<PathBuf>,
    /// The keys themselves, apart by white space; they take the place of the file. Meant for the environment
    /// (`KILN_SECRETS_KEY`), and never written.
    pub key: KeyText,
}

/// The text of keys, which is never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KeyText(Zeroizing<String>);

impl KeyText {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Nothing where there is none.
    pub fn get(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|text| !text.trim().is_empty())
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.get().is_some() { HIDDEN } else { "none" })
    }
}

impl Serialize for KeyText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.get().is_some() { HIDDEN } else { "" })
    }
}

impl<'de> Deserialize<'de> for KeyText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_never_shown_nor_written() {
        let secrets: Secrets = toml::from_str("key = \"hush\"").unwrap();
        assert_eq!(secrets.key.get(), Some("hush"));
        let written = toml::to_string(&secrets).unwrap();
        assert!(!format!("{secrets:?} {written}").contains("hush"));
        assert_eq!(Secrets::default().key.get(), None);
    }
}
