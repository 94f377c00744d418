//! The keys that encrypt secrets at rest. It knows bytes and what they belong to, nothing of rows.
//!
//! XChaCha20-Poly1305: a random nonce of 24 bytes never repeats, and what a value belongs to (its id, project, build and
//! name) is authenticated with it, so that no value opens in the place of another. A key is known by an id that is
//! derived from it; the row says which one encrypted it. The first key encrypts, all of them decrypt.

use std::{fmt, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use kiln_core::id::{BuildId, ProjectId, SecretId};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes of a key.
pub const KEY: usize = 32;
const NONCE: usize = 24;
/// What a sealed value is longer than the value: nonce and tag.
pub const OVERHEAD: usize = NONCE + 16;
/// More than a rotation ever needs.
const MAX_KEYS: usize = 16;

/// Why keys can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "holds no key: write 32 random bytes as base64 on a line, as `openssl rand -base64 32` does"
    )]
    Empty,
    /// The place of a key that is none, from 1 on; its text is not repeated.
    #[error("key {0} is not 32 bytes in base64; make one with `openssl rand -base64 32`")]
    Malformed(usize),
    #[error("key {0} is there twice")]
    Twice(usize),
    #[error("has more than 16 keys; remove those that encrypt nothing any more")]
    TooMany,
}

/// Why a value can't be encrypted or decrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    #[error("key {0} is not among the server's keys")]
    UnknownKey(String),
    #[error("the value was altered, or belongs elsewhere")]
    Altered,
    #[error("this machine gives no random numbers")]
    NoRandom,
}

/// What a value belongs to, as bytes that no other has.
pub trait Belongs: Copy {
    fn bytes(&self) -> Vec<u8>;
}

/// What the value of a secret belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    pub id: SecretId,
    pub project: ProjectId,
    /// Nothing: it belongs to the project.
    pub build: Option<BuildId>,
    pub name: &'a str,
}

impl Belongs for Owner<'_> {
    /// Fields of fixed length before the one that is not, so that no two owners have the same bytes.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"kiln secret 1\0".to_vec();
        bytes.extend_from_slice(self.id.uuid().as_bytes());
        bytes.extend_from_slice(self.project.uuid().as_bytes());
        bytes.push(u8::from(self.build.is_some()));
        let build = self.build.map_or(uuid::Uuid::nil(), BuildId::uuid);
        bytes.extend_from_slice(build.as_bytes());
        bytes.extend_from_slice(self.name.as_bytes());
        bytes
    }
}

struct Key {
    id: String,
    cipher: XChaCha20Poly1305,
}

/// All keys of a server, at least one.
pub struct Keys(Vec<Key>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

impl Keys {
    /// Keys in base64, separated by white space. Lines that begin with `#` are comments.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let mut keys: Vec<Key> = vec![];
        for (index, word) in lines.flat_map(str::split_whitespace).enumerate() {
            let place = index + 1;
            if place > MAX_KEYS {
                return Err(Error::TooMany);
            }
            let bytes = Zeroizing::new(STANDARD.decode(word).unwrap_or_default());
            let cipher = XChaCha20Poly1305::new_from_slice(&bytes);
            let key =
                Key { id: key_id(&bytes), cipher: cipher.map_err(|_| Error::Malformed(place))? };
            if keys.iter().any(|known| known.id == key.id) {
                return Err(Error::Twice(place));
            }
            keys.push(key);
        }
        if keys.is_empty() { Err(Error::Empty) } else { Ok(Self(keys)) }
    }

    /// The id of the key that encrypts.
    pub fn first(&self) -> &str {
        &self.0[0].id
    }

    pub fn knows(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id == id)
    }

    /// Encrypts with the first key: nonce, then the encrypted bytes and their tag.
    pub fn seal(&self, owner: impl Belongs, value: &[u8]) -> Result<Vec<u8>, CipherError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| CipherError::NoRandom)?;
        let payload = Payload { msg: value, aad: &owner.bytes() };
        let sealed = self.0[0].cipher.encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.map_err(|_| CipherError::Altered)?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Decrypts what `key` sealed for this owner.
    pub fn open(
        &self,
        owner: impl Belongs,
        key: &str,
        sealed: &[u8],
    ) -> Result<Vec<u8>, CipherError> {
        let known = self.0.iter().find(|known| known.id == key);
        let known = known.ok_or_else(|| CipherError::UnknownKey(key.to_owned()))?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or(CipherError::Altered)?;
        let payload = Payload { msg: sealed, aad: &owner.bytes() };
        known.cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| CipherError::Altered)
    }
}

/// The first 16 digits of a digest that says nothing of the key.
fn key_id(key: &[u8]) -> String {
    let digest = Sha256::new().chain_update(b"kiln secret key 1\0").chain_update(key).finalize();
    digest[..8].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// A new key as its file holds it.
pub fn new_key_text() -> Result<Zeroizing<String>, CipherError> {
    let mut key = Zeroizing::new([0; KEY]);
    getrandom::fill(&mut *key).map_err(|_| CipherError::NoRandom)?;
    Ok(Zeroizing::new(STANDARD.encode(*key) + "\n"))
}

/// Reads a file of keys.
pub fn read(path: &Path) -> std::io::Result<Result<Keys, Error>> {
    let text = Zeroizing::new(std::fs::read_to_string(path)?);
    Ok(Keys::parse(&text))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn owner(build: Option<u128>, name: &str) -> Owner<'_> {
        Owner {
            id: SecretId::from_uuid(Uuid::from_u128(1)),
            project: ProjectId::from_uuid(Uuid::from_u128(2)),
            build: build.map(|n| BuildId::from_uuid(Uuid::from_u128(n))),
            name,
        }
    }

    fn text(byte: u8) -> String {
        STANDARD.encode([byte; KEY])
    }

    #[test]
    fn a_value_opens_only_where_it_belongs() {
        let keys = Keys::parse(&text(1)).unwrap();
        let mine = owner(None, "TOKEN");
        let sealed = keys.seal(mine, b"hush").unwrap();
        assert_eq!(sealed.len(), OVERHEAD + 4);
        assert_eq!(keys.open(mine, keys.first(), &sealed).unwrap(), b"hush");
        assert_ne!(keys.seal(mine, b"hush").unwrap(), sealed, "a nonce of its own each time");
        let other_project = Owner { project: ProjectId::from_uuid(Uuid::from_u128(9)), ..mine };
        let other_id = Owner { id: SecretId::from_uuid(Uuid::from_u128(9)), ..mine };
        for other in [owner(None, "TOKEN2"), owner(Some(0), "TOKEN"), other_project, other_id] {
            assert_eq!(keys.open(other, keys.first(), &sealed), Err(CipherError::Altered));
        }
        for at in [0, NONCE, sealed.len() - 1] {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert_eq!(keys.open(mine, keys.first(), &altered), Err(CipherError::Altered));
        }
        assert_eq!(keys.open(mine, keys.first(), b"short"), Err(CipherError::Altered));
    }

    #[test]
    fn the_first_key_encrypts_and_all_decrypt() {
        let old = Keys::parse(&text(1)).unwrap();
        let both = Keys::parse(&format!("# new\n{}\n\n{}\n", text(2), text(1))).unwrap();
        let mine = owner(None, "A");
        let sealed = old.seal(mine, b"x").unwrap();
        assert_eq!(both.open(mine, old.first(), &sealed).unwrap(), b"x");
        assert_ne!(both.first(), old.first());
        let anew = both.seal(mine, b"x").unwrap();
        let unknown = CipherError::UnknownKey(both.first().to_owned());
        assert_eq!(old.open(mine, both.first(), &anew), Err(unknown));
    }

    #[test]
    fn wrong_keys_are_named_by_their_place_and_never_shown() {
        for (wrong, error) in [
            (String::new(), Error::Empty),
            ("# only a comment".into(), Error::Empty),
            (format!("{} hunter2", text(1)), Error::Malformed(2)),
            (STANDARD.encode([0; 31]), Error::Malformed(1)),
            (format!("{0} {0}", text(1)), Error::Twice(2)),
            ((0..17).map(|n| text(n) + " ").collect(), Error::TooMany),
        ] {
            assert_eq!(Keys::parse(&wrong).unwrap_err(), error);
            assert!(!error.to_string().contains("hunter2"));
        }
        let shown = format!("{:?}", Keys::parse(&text(1)).unwrap());
        assert!(shown.len() < 25 && !shown.contains(&text(1)), "{shown}");
        assert!(Keys::parse(&new_key_text().unwrap()).is_ok());
    }
}
