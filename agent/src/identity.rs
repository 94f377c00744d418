//! Who this agent is to its server: an id, and a credential and a key that it made for itself. In `identity.json`, for the
//! owner's eyes only.

use std::{
    fmt::{self, Write},
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use kiln_core::id::AgentId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    certificate,
    connection::{self, Address},
    run::write_durably,
};

const FILE: &str = "identity.json";

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not an identity: {source}; restore the file, or enrol anew in an empty folder", path.display())]
    Broken { path: PathBuf, source: serde_json::Error },
    #[error("{}: this agent is not enrolled; give it an enrolment token", .0.display())]
    NotEnrolled(PathBuf),
    #[error("{}: already enrolled as {agent}", path.display())]
    Enrolled { path: PathBuf, agent: AgentId },
    #[error("a key can't be made or used: {0}; restore the file, or enrol anew in an empty folder")]
    Key(#[from] rcgen::Error),
    #[error("no randomness for a credential")]
    Random,
    #[error("{0}")]
    Refused(#[from] kiln_sdk::Error),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    /// Absent until the server answered.
    agent: Option<AgentId>,
    credential: String,
    /// The key that the server certifies, in PEM. Absent until it is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_pem: Option<String>,
}

/// An enrolled agent.
#[derive(Clone)]
pub struct Identity {
    pub agent: AgentId,
    credential: String,
    key_pem: Option<String>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("agent", &self.agent).finish_non_exhaustive()
    }
}

impl Identity {
    pub fn load(data: &Path) -> Result<Self, Error> {
        let path = data.join(FILE);
        match read(&path)? {
            Some(Stored { agent: Some(agent), credential, key_pem }) => {
                Ok(Self { agent, credential, key_pem })
            }
            _ => Err(Error::NotEnrolled(path)),
        }
    }

    /// The key that the server certifies; made, and kept, where there is none yet.
    pub(crate) fn key_pem(&mut self, data: &Path) -> Result<&str, Error> {
        if self.key_pem.is_none() {
            let key_pem = Some(certificate::new_key()?);
            let Self { agent, credential, .. } = self.clone();
            let stored = Stored { agent: Some(agent), credential, key_pem };
            write(&data.join(FILE), &stored)?;
            self.key_pem = stored.key_pem;
        }
        Ok(self.key_pem.as_deref().unwrap_or_default())
    }

    pub(crate) fn known_key(&self) -> Option<&str> {
        self.key_pem.as_deref()
    }

    pub(crate) fn bearer(&self) -> String {
        format!("{}.{}", self.agent, self.credential)
    }
}

fn read(path: &Path) -> Result<Option<Stored>, Error> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| Error::Broken { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

fn write(path: &Path, stored: &Stored) -> Result<(), Error> {
    let bytes = serde_json::to_vec_pretty(stored)
        .map_err(|source| Error::Broken { path: path.to_owned(), source })?;
    write_durably(path, &bytes).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// Makes this data folder's agent known to the server. The credential is kept before it is shown, so that an answer
/// that was lost burns nothing: the same call again gets the same identity.
pub async fn enroll(
    address: &Address,
    token: &str,
    name: &str,
    data: &Path,
) -> Result<Identity, Error> {
    let path = data.join(FILE);
    let io = |source| Error::Io { path: path.clone(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(io)?;
    let mut stored = match read(&path)? {
        Some(Stored { agent: Some(agent), .. }) => return Err(Error::Enrolled { path, agent }),
        Some(stored) => stored,
        None => Stored { agent: None, credential: credential()?, key_pem: None },
    };
    let mut request = vec![];
    if address.is_encrypted() {
        let key_pem = match stored.key_pem.take() {
            Some(key_pem) => key_pem,
            None => certificate::new_key()?,
        };
        request = certificate::request(&key_pem)?;
        stored.key_pem = Some(key_pem);
    }
    write(&path, &stored)?;
    let digest = Sha256::digest(unhex(&stored.credential)).to_vec();
    let answer = connection::enroll(address, token.trim(), name, digest, request).await?;
    let (agent, certificate) = answer;
    if let Some(certificate) = certificate {
        certificate.save(data).map_err(io)?;
    }
    stored.agent = Some(agent);
    write(&path, &stored)?;
    Ok(Identity { agent, credential: stored.credential, key_pem: stored.key_pem })
}

fn credential() -> Result<String, Error> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(hex(&bytes))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _a_string_takes_all = write!(text, "{byte:02x}");
        text
    })
}

/// What [`hex`] made; the file is ours, and what is no hexadecimal in it fails to authenticate.
fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .filter_map(|at| text.get(at * 2..at * 2 + 2))
        .filter_map(|pair| u8::from_str_radix(pair, 16).ok())
        .collect()
}
