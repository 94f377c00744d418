//! TLS to Postgres as the database's URL asks for it, as libpq reads `sslmode` and `sslrootcert`: the same for the pool
//! and for the connection that hears of wake-ups, which are of two libraries.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Why the URL can't be used. It never holds the URL, in which the password is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("sslmode={0} is not known; use disable, prefer, require, verify-ca or verify-full")]
    Mode(String),
    #[error("{0} is not supported; sslmode and sslrootcert are")]
    Unsupported(String),
    #[error("sslrootcert {path} can't be used: {why}")]
    Root { path: PathBuf, why: String },
    #[error("TLS can't be set up")]
    Tls(#[from] rustls::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// What a URL says of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssl {
    mode: Mode,
    root: Option<PathBuf>,
}

impl Ssl {
    /// Takes what concerns TLS out of a URL.
    pub fn of(url: &str) -> Result<(String, Self), Error> {
        let (mut mode, mut root, mut rest) = (Mode::Prefer, None, vec![]);
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("sslmode" | "ssl-mode", text) => {
                    mode = match text {
                        "disable" => Mode::Disable,
                        "prefer" => Mode::Prefer,
                        "require" => Mode::Require,
                        "verify-ca" => Mode::VerifyCa,
                        "verify-full" => Mode::VerifyFull,
                        other => return Err(Error::Mode(other.to_owned())),
                    }
                }
                ("sslrootcert" | "ssl-root-cert" | "ssl-ca", path) => {
                    root = Some(PathBuf::from(decoded(path)));
                }
                (name, _) if name.starts_with("ssl") => {
                    return Err(Error::Unsupported(name.to_owned()));
                }
                _ => rest.push(pair),
            }
        }
        // As libpq: who names an authority wants it to be checked.
        if mode == Mode::Require && root.is_some() {
            mode = Mode::VerifyCa;
        }
        let query = rest.join("&");
        let rest = if query.is_empty() { base.to_owned() } else { format!("{base}?{query}") };
        Ok((rest, Self { mode, root }))
    }

    pub(super) fn of_pool(&self, options: PgConnectOptions) -> PgConnectOptions {
        let options = options.ssl_mode(match self.mode {
            Mode::Disable => PgSslMode::Disable,
            Mode::Prefer => PgSslMode::Prefer,
            Mode::Require => PgSslMode::Require,
            Mode::VerifyCa => PgSslMode::VerifyCa,
            Mode::VerifyFull => PgSslMode::VerifyFull,
        });
        match &self.root {
            Some(path) => options.ssl_root_cert(path),
            None => options,
        }
    }

    /// For the connection of the other library; says in `config` whether it must be encrypted.
    pub fn connector(
        &self,
        config: &mut tokio_postgres::Config,
    ) -> Result<MakeRustlsConnect, Error> {
        use tokio_postgres::config::SslMode;
        config.ssl_mode(match self.mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = match self.mode {
            Mode::Disable | Mode::Prefer | Mode::Require => None,
            Mode::VerifyCa | Mode::VerifyFull => {
                let roots = Arc::new(self.roots()?);
                let built =
                    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
                Some(built.build().map_err(|error| rustls::Error::General(error.to_string()))?)
            }
        };
        let any_name = self.mode != Mode::VerifyFull;
        let verifier = Verifier { inner: verifier, any_name, provider: Arc::clone(&provider) };
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(MakeRustlsConnect::new(tls))
    }

    /// Without a file, the public authorities, as the pool's library takes them.
    fn roots(&self) -> Result<RootCertStore, Error> {
        let Some(path) = &self.root else {
            return Ok(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect());
        };
        let bad = |why: String| Error::Root { path: path.clone(), why };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))? {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            roots.add(certificate).map_err(|error| bad(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(bad("it holds no certificate in PEM".to_owned()));
        }
        Ok(roots)
    }
}

/// `%2F` and the like as the bytes that they stand for; what is no such thing stays.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut found, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        if let Some(byte) = code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            found.push(byte);
            at += 3;
        } else {
            found.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&found).into_owned()
}

/// Checks as much as the mode asks for: nothing, the authority, or the host name too.
#[derive(Debug)]
struct Verifier {
    inner: Option<Arc<WebPkiServerVerifier>>,
    any_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(verifier) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        // The name is looked at last: where it alone is wrong, all else is right.
        match verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        ) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.any_name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_as_libpq_reads_it() {
        let of = |query: &str| Ssl::of(&format!("postgres://u:p@h/d{query}"));
        let mode = |query: &str| of(query).unwrap().1.mode;
        assert_eq!(mode(""), Mode::Prefer);
        assert_eq!(mode("?sslmode=disable"), Mode::Disable);
        assert_eq!(mode("?sslmode=require"), Mode::Require);
        assert_eq!(mode("?sslmode=require&sslrootcert=/ca"), Mode::VerifyCa);
        assert_eq!(mode("?sslrootcert=/ca&sslmode=verify-full"), Mode::VerifyFull);
        let (rest, ssl) = of("?a=1&sslmode=verify-ca&sslrootcert=%2Fmy%20ca&b=2").unwrap();
        assert_eq!(rest, "postgres://u:p@h/d?a=1&b=2");
        assert_eq!(ssl, Ssl { mode: Mode::VerifyCa, root: Some("/my ca".into()) });
        assert_eq!(of("?sslmode=disable").unwrap().0, "postgres://u:p@h/d");
        for (query, named) in [("?sslmode=always", "always"), ("?sslkey=/k", "sslkey")] {
            let said = of(query).unwrap_err().to_string();
            assert!(said.contains(named) && !said.contains("u:p"), "{said}");
        }
    }
}
