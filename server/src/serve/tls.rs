//! What this server shows of itself over TLS: a certificate of files, or one that the shared authority signs. Made anew
//! where files, authorities or time ask for it; connections that are open keep what they began with.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use kiln_core::Millis;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{Error, Result};
use crate::{
    app::App,
    authority::{self, Authority},
    config::{self, Config, Invalid},
    data,
    store::AuthorityRow,
};

/// HTTP/2 for gRPC, and what probes speak.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// A certificate of our own is replaced so long before its end.
const EARLY: Millis = authority::CERTIFICATE / 3;

/// Cheap to share; what it shows may change.
#[derive(Debug)]
pub(super) struct Tls {
    app: App,
    files: Option<(PathBuf, PathBuf)>,
    names: Vec<String>,
    data_dir: PathBuf,
    shown: RwLock<Shown>,
}

#[derive(Debug, Clone)]
struct Shown {
    config: Arc<ServerConfig>,
    /// Of all that it was made of.
    made_of: [u8; 32],
    /// When it is to be made anew in any case.
    due: Millis,
}

/// What a new certificate is made of.
struct Sources {
    /// Certificate and key of files.
    files: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
    authorities: Vec<AuthorityRow>,
}

impl Tls {
    /// Finds or makes the authority and what is to be shown.
    pub(super) async fn open(config: &Config, app: &App) -> Result<Arc<Self>> {
        let tls = &config.tls;
        app.ensure_authority().await?;
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        names.extend(host_name());
        names.extend(far(config.listen.ip()).map(|ip| ip.to_string()));
        names.extend(tls.names.iter().cloned());
        names.sort_unstable();
        names.dedup();
        let files = tls.cert_file.clone().zip(tls.key_file.clone());
        let sources = Sources::read(app, files.as_ref()).await?;
        let shown = shown(app, &sources, &names)?;
        let own = Self {
            app: app.clone(),
            files,
            names,
            data_dir: config.data_dir.clone(),
            shown: RwLock::new(shown),
        };
        own.publish(&sources)?;
        Ok(Arc::new(own))
    }

    /// What the next connection is shown.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner).config)
    }

    /// Follows files, authorities and time, until the halt.
    pub(super) async fn tend(self: Arc<Self>, halt: CancellationToken) {
        let mut ticks = tokio::time::interval(self.app.timing().sweep);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What can't be used is said once, not each time it is seen.
        let mut last = String::new();
        while halt.run_until_cancelled(ticks.tick()).await.is_some() {
            let said = match self.follow().await {
                Ok(()) => String::new(),
                Err(error) => chain(&error),
            };
            if said != last && !said.is_empty() {
                tracing::warn!(error = said, "the certificate stays as it was");
            }
            last = said;
        }
    }

    async fn follow(&self) -> Result<()> {
        let sources = Sources::read(&self.app, self.files.as_ref()).await?;
        {
            let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
            if shown.made_of == sources.digest() && self.app.clock().now() < shown.due {
                return Ok(());
            }
        }
        let shown = shown(&self.app, &sources, &self.names)?;
        self.publish(&sources)?;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = shown;
        tracing::info!("new connections are shown a new certificate");
        Ok(())
    }

    /// Lets clients of this machine find whom to trust.
    fn publish(&self, sources: &Sources) -> Result<()> {
        let rows = sources.authorities.iter();
        let trusted: String = rows.map(|row| authority::pem(&row.certificate)).collect();
        Ok(data::write_authorities(&self.data_dir, &trusted)?)
    }
}

impl Sources {
    async fn read(app: &App, files: Option<&(PathBuf, PathBuf)>) -> Result<Self> {
        let files = match files {
            Some((cert, key)) => {
                let cert = read("tls.cert_file", cert).await?;
                Some((cert, Zeroizing::new(read("tls.key_file", key).await?)))
            }
            None => None,
        };
        Ok(Self { files, authorities: app.authorities().await? })
    }

    fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        if let Some((cert, key)) = &self.files {
            digest.update(Sha256::digest(cert));
            digest.update(Sha256::digest(key));
        }
        for row in &self.authorities {
            digest.update(Sha256::digest(&row.certificate));
        }
        digest.finalize().into()
    }
}

async fn read(field: &'static str, path: &Path) -> Result<Vec<u8>> {
    let failed = |error| invalid(field, format!("{} can't be read: {error}", path.display()));
    Ok(tokio::fs::read(path).await.map_err(failed)?)
}

fn invalid(field: &'static str, message: impl Into<String>) -> config::Error {
    config::Error(vec![Invalid { field, message: message.into() }])
}

fn shown(app: &App, sources: &Sources, names: &[String]) -> Result<Shown> {
    let now = app.clock().now();
    let (chain, key, due) = if let Some((cert, key)) = &sources.files {
        let (chain, key) = of_files(cert, key)?;
        (chain, key, Millis::MAX)
    } else {
        let signer = signer(app, &sources.authorities)?;
        let (certificate, key) = signer.server(names, now)?;
        // A client may know an authority by its digest alone, or know only an older one: it is given all of them.
        let rows = sources.authorities.iter();
        let known = rows.flat_map(|row| row.bridge.iter().chain([&row.certificate]));
        let known = known.map(|der| CertificateDer::from(der.clone()));
        let chain = [certificate].into_iter().chain(known).collect();
        (chain, key, now.saturating_add(authority::CERTIFICATE - EARLY))
    };
    let mut roots = RootCertStore::empty();
    for row in &sources.authorities {
        roots.add(CertificateDer::from(row.certificate.clone()))?;
    }
    let agents = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build();
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(
            agents.map_err(|error| rustls::Error::General(error.to_string()))?,
        )
        .with_single_cert(chain, key)
        .map_err(|error| match sources.files {
            Some(_) => {
                Error::from(invalid("tls.key_file", format!("does not fit tls.cert_file: {error}")))
            }
            None => error.into(),
        })?;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
    Ok(Shown { config: Arc::new(config), made_of: sources.digest(), due })
}

/// The newest authority, which signs.
fn signer(app: &App, authorities: &[AuthorityRow]) -> Result<Authority> {
    let newest = authorities.first();
    let newest =
        newest.ok_or_else(|| rustls::Error::General("there is no authority".to_owned()))?;
    Ok(app.open_authority(newest)?)
}

fn of_files(
    cert: &[u8],
    key: &[u8],
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), config::Error> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
    let chain = chain.map_err(|error| invalid("tls.cert_file", format!("is no PEM: {error}")))?;
    if chain.is_empty() {
        return Err(invalid("tls.cert_file", "holds no certificate in PEM"));
    }
    // The error of a key that can't be read might hold a part of it.
    let key = PrivateKeyDer::from_pem_slice(key);
    let key = key.map_err(|_| invalid("tls.key_file", "holds no private key in PEM"))?;
    Ok((chain, key))
}

/// An address that others can connect to.
fn far(ip: IpAddr) -> Option<IpAddr> {
    (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}
