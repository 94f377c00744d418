//! The certificate of this agent's key: kept in `certificate.json`, and renewed in time. The key never leaves the data
//! folder; who asks for a certificate only shows that he has it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_core::Millis;
use kiln_sdk::Trust;
use rcgen::{CertificateParams, KeyPair};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    connection::{self, Address, Server},
    identity::{self, Identity},
    run::{blocking, write_durably},
};

const FILE: &str = "certificate.json";
/// The time is looked at so often; the clock may jump.
const LOOK: Duration = Duration::from_mins(10);
/// A certificate that is no older is not doubted.
const FRESH: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_mins(1);

/// What the server has given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Certificate {
    pub(crate) pem: String,
    /// When another one is to be asked for.
    pub(crate) renew_ms: Millis,
    pub(crate) ends_ms: Millis,
    /// Whom to trust, beside whom the configuration names.
    pub(crate) authorities_pem: String,
}

impl Certificate {
    /// Nothing where there is none that can be read: another one is asked for.
    fn load(data: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(data.join(FILE)).ok()?).ok()
    }

    pub(crate) fn save(&self, data: &Path) -> io::Result<()> {
        write_durably(&data.join(FILE), &serde_json::to_vec_pretty(self)?)
    }
}

/// A new key in PEM.
pub(crate) fn new_key() -> Result<String, rcgen::Error> {
    Ok(KeyPair::generate()?.serialize_pem())
}

/// Shows that this side has the key, without showing the key.
pub(crate) fn request(key_pem: &str) -> Result<Vec<u8>, rcgen::Error> {
    let request = CertificateParams::default().serialize_request(&KeyPair::from_pem(key_pem)?)?;
    Ok(request.der().to_vec())
}

/// Holds the certificate of one agent.
#[derive(Debug)]
pub(crate) struct Keeper {
    address: Address,
    identity: Identity,
    data: PathBuf,
    current: Option<Certificate>,
}

/// What a renewal may fail of.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("{0}")]
    Server(#[from] kiln_sdk::Error),
    #[error("the certificate can't be kept: {0}")]
    Io(#[from] io::Error),
}

impl Keeper {
    /// Of an agent that speaks TLS; no other has a certificate.
    pub(crate) fn new(address: &Address, identity: &Identity, data: &Path) -> Option<Self> {
        address.is_encrypted().then(|| Self {
            address: address.clone(),
            identity: identity.clone(),
            data: data.to_owned(),
            current: Certificate::load(data),
        })
    }

    /// Waits until there is a certificate that is good now, or until the server has answered that it gives none.
    pub(crate) async fn get(&mut self, stop: &CancellationToken) {
        let mut pause = FIRST_PAUSE;
        while self.current.as_ref().is_none_or(|one| one.ends_ms <= clock::wall_ms()) {
            let renewed = stop.run_until_cancelled(self.renew()).await;
            match renewed {
                None | Some(Ok(())) => return,
                // It has no authority, or has evicted this agent: the session hears the rest.
                Some(Err(Error::Server(error))) if !error.is_unreachable() => {
                    tracing::info!(%error, "the server gives this agent no certificate");
                    return;
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "no certificate for this agent; trying again");
                }
            }
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// The address with the certificate, and with whom it says to trust.
    pub(crate) fn address(&self) -> Address {
        Address { url: self.address.url.clone(), trust: self.trust() }
    }

    fn trust(&self) -> Trust {
        let mut trust = self.address.trust.clone();
        let Some(current) = &self.current else { return trust };
        trust.identity = self.identity.known_key().map(|key_pem| kiln_sdk::Identity {
            certificate_pem: current.pem.clone(),
            key_pem: key_pem.to_owned(),
        });
        // Who trusts those of the machine goes on to do so.
        if trust.ca_pem.is_some() || trust.ca_fingerprint.is_some() {
            let pem = trust.ca_pem.get_or_insert_default();
            pem.push(b'\n');
            pem.extend_from_slice(current.authorities_pem.as_bytes());
        }
        trust
    }

    /// Renews it in time, and where the server does not take it.
    pub(crate) async fn keep(mut self, server: Server, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let now = clock::wall_ms();
            let due = self.current.as_ref().map_or(Millis::MAX, |one| one.renew_ms);
            let left = u64::try_from(due.saturating_sub(now)).unwrap_or_default();
            let wait = LOOK.min(Duration::from_millis(left));
            let doubted = stop.run_until_cancelled(timeout(wait, server.doubted())).await;
            let Some(doubted) = doubted else { return };
            if doubted.is_err() && clock::wall_ms() < due {
                continue;
            }
            let renewed = match self.renew().await {
                Ok(()) => server.secure(&self.trust()).map_err(Error::from),
                Err(error) => Err(error),
            };
            let rest = match renewed {
                Ok(()) => {
                    tracing::info!("the certificate of this agent was renewed");
                    pause = FIRST_PAUSE;
                    FRESH
                }
                Err(error) => {
                    tracing::warn!(%error, "the certificate of this agent was not renewed; trying again");
                    pause = (pause * 2).min(LAST_PAUSE);
                    pause
                }
            };
            if stop.run_until_cancelled(sleep(rest)).await.is_none() {
                return;
            }
        }
    }

    async fn renew(&mut self) -> Result<(), Error> {
        let key_pem = self.identity.key_pem(&self.data)?;
        let request = request(key_pem).map_err(identity::Error::from)?;
        // The old certificate may have ended, and is not needed: whom to trust is what matters.
        let mut address = self.address();
        address.trust.identity = None;
        let certificate = connection::certify(&address, &self.identity, request).await?;
        let (kept, data) = (certificate.clone(), self.data.clone());
        blocking(move || kept.save(&data)).await?;
        self.current = Some(certificate);
        Ok(())
    }
}
