//! Whom this side trusts and who it is, over TLS; and what went wrong, as a person can mend it.

use std::{
    fmt, io,
    str::FromStr,
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::Error;

/// SHA-256 of the certificate of an authority in DER: trusts it without a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl FromStr for Fingerprint {
    type Err = &'static str;

    /// `sha256:` and 64 hexadecimal digits, with or without colons between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "must be like sha256:… with 64 hexadecimal digits, as `kiln ca show` prints it";
        let text = text.trim().to_ascii_lowercase();
        let digits = text.strip_prefix("sha256:").unwrap_or(&text).replace(':', "");
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(wrong);
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A certificate of this side and its key, in PEM. The key shows in no log and no debug text.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(…)")
    }
}

/// What makes a connection secure.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// PEM of authorities.
    pub ca_pem: Option<Vec<u8>>,
    /// An authority that the server itself shows.
    pub ca_fingerprint: Option<Fingerprint>,
    /// Presented to a server that asks for it.
    pub identity: Option<Identity>,
}

impl Trust {
    /// Without an authority of its own, those that the machine trusts.
    fn config(&self) -> Result<ClientConfig, Error> {
        let bad = |what: &str| Error::local(Code::InvalidArgument, what.to_owned());
        let mut roots = RootCertStore::empty();
        if let Some(pem) = &self.ca_pem {
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let certificates =
                certificates.map_err(|_| bad("the file of authorities is not in PEM"))?;
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(bad("the file of authorities holds no certificate in PEM"));
            }
        } else if self.ca_fingerprint.is_none() {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pin = self.ca_fingerprint;
        let verifier = Verifier { roots, pin, provider: Arc::clone(&provider) };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.identity {
            None => config.with_no_client_auth(),
            Some(Identity { certificate_pem, key_pem }) => {
                let chain = CertificateDer::pem_slice_iter(certificate_pem.as_bytes());
                let chain: Result<Vec<_>, _> = chain.collect();
                let chain = chain.map_err(|_| bad("this side's certificate is not in PEM"))?;
                let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes());
                let key =
                    key.map_err(|_| bad("the key of this side's certificate is not in PEM"))?;
                config
                    .with_client_auth_cert(chain, key)
                    .map_err(|_| bad("the key does not fit this side's certificate"))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// What the next connection uses. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Tls(Arc<RwLock<Arc<ClientConfig>>>);

impl Tls {
    pub(crate) fn new(trust: &Trust) -> Result<Self, Error> {
        Ok(Self(Arc::new(RwLock::new(Arc::new(trust.config()?)))))
    }

    pub(crate) fn set(&self, trust: &Trust) -> Result<(), Error> {
        let config = Arc::new(trust.config()?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Trusts the roots, and the authority of the fingerprint where the server shows it.
#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    pin: Option<Fingerprint>,
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
        let mut roots = self.roots.clone();
        if let Some(pin) = self.pin {
            let pinned = intermediates.iter().find(|der| Fingerprint::of(der) == pin);
            if let Some(pinned) = pinned {
                roots.add(pinned.clone().into_owned())?;
            }
        }
        if roots.is_empty() {
            let shown = intermediates.last().map_or_else(
                || "none".to_owned(),
                |certificate| Fingerprint::of(certificate).to_string(),
            );
            let other = OtherError(Arc::new(OtherAuthority(shown)));
            return Err(CertificateError::Other(other).into());
        }
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&self.provider))
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
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

/// The server shows another authority than the one of the fingerprint.
#[derive(Debug)]
struct OtherAuthority(String);

impl fmt::Display for OtherAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its authority is {}", self.0)
    }
}

impl std::error::Error for OtherAuthority {}

/// Why a connection can't be secured. No other attempt will be any different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

/// Reaches an error through layers that keep nothing but its text.
const SPEAKS_TLS: &str = "the server speaks TLS, and this connection is plain";
const REFUSED: &str = "the server refuses this side's certificate";

impl Fault {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }

    pub(crate) fn speaks_tls() -> Self {
        Self::new(
            SPEAKS_TLS,
            "write https:// in the server's address, and say whom to trust with --ca-file or --ca-fingerprint",
        )
    }

    fn refused(why: &str) -> Self {
        Self::new(
            format!("{REFUSED}{why}"),
            "it may have expired, or its authority is not trusted any more: evict the agent and enrol it anew",
        )
    }

    /// What a handshake or a later read on the connection says.
    pub(crate) fn of(error: &rustls::Error, host: &str) -> Option<Self> {
        use rustls::Error as E;
        match error {
            E::InvalidCertificate(error) => Some(of_certificate(error, host)),
            E::InvalidMessage(_) => Some(Self::new(
                "the server does not speak TLS",
                "write http:// in the server's address, or set tls.enabled on the server",
            )),
            E::AlertReceived(alert) => {
                use rustls::AlertDescription as A;
                matches!(
                    alert,
                    A::BadCertificate
                        | A::CertificateExpired
                        | A::CertificateRequired
                        | A::CertificateRevoked
                        | A::CertificateUnknown
                        | A::UnknownCA
                        | A::UnsupportedCertificate
                )
                .then(|| Self::refused(&format!(" ({alert:?})")))
            }
            _ => None,
        }
    }

    /// Whether this is the text of a refusal.
    pub(crate) fn is_refusal(text: &str) -> bool {
        text.contains(REFUSED)
    }

    /// The fault in a chain of errors, where one is the cause.
    pub(crate) fn find(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            // An error of I/O is no link of the chain: it stands for what it holds.
            let io = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let held = io.and_then(|held| held.downcast_ref::<Self>());
            if let Some(fault) = error.downcast_ref::<Self>().or(held) {
                return Some(fault.clone());
            }
            let text = error.to_string();
            if text.contains(SPEAKS_TLS) {
                return Some(Self::speaks_tls());
            }
            if Self::is_refusal(&text) {
                return Some(Self::refused(""));
            }
            next = error.source();
        }
        None
    }
}

fn of_certificate(error: &CertificateError, host: &str) -> Fault {
    use CertificateError as E;
    let names = "connect by one of its names, or name this one in tls.names on the server";
    match error {
        // Another one may have the same name, and signs otherwise.
        E::UnknownIssuer | E::BadSignature => Fault::new(
            format!("the certificate of {host} is not of an authority that this side trusts"),
            "give the right one with --ca-file or --ca-fingerprint; `kiln ca show` on the server's machine tells it",
        ),
        E::Other(OtherError(other)) if other.is::<OtherAuthority>() => Fault::new(
            format!("{host} has no certificate of the authority with this fingerprint; {other}"),
            "compare with `kiln ca show` on the server's machine; who is asked here may not be the server at all",
        ),
        E::Expired | E::ExpiredContext { .. } => Fault::new(
            format!("the certificate of {host} has expired"),
            "renew tls.cert_file on the server, and check the clock of this machine",
        ),
        E::NotValidYet | E::NotValidYetContext { .. } => Fault::new(
            format!("the certificate of {host} is not valid yet"),
            "check the clocks of this machine and of the server",
        ),
        E::NotValidForName => {
            Fault::new(format!("the certificate of the server is not for {host}"), names)
        }
        E::NotValidForNameContext { presented, .. } => Fault::new(
            format!(
                "the certificate of the server is not for {host}, but for {}",
                presented.iter().map(|name| bare(name)).collect::<Vec<_>>().join(", ")
            ),
            names,
        ),
        other => Fault::new(
            format!("the certificate of {host} can't be used: {other}"),
            "check tls.cert_file on the server",
        ),
    }
}

/// `DnsName("localhost")` and `IpAddress(127.0.0.1)` as people write them.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_people_copy_it() {
        let hex = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        let expected = Fingerprint([0xab; 32]);
        for text in [hex.clone(), format!("sha256:{hex}"), format!(" SHA256:{colons}\n")] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        assert_eq!(expected.to_string(), format!("sha256:{hex}"));
        for text in ["", "sha256:", "ab", &"zz".repeat(32), &"é".repeat(32)] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_identity_is_never_shown() {
        let identity = Identity { certificate_pem: String::new(), key_pem: "hush".to_owned() };
        let trust = Trust { identity: Some(identity), ..Trust::default() };
        assert!(!format!("{trust:?}").contains("hush"));
    }
}
