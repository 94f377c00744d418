//! An authority that signs certificates: for the server itself, and for agents. It knows bytes and moments, nothing of
//! rows or connections.

use std::{fmt, time::Duration};

use kiln_core::Millis;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::secrets::Belongs;

const DAY: Millis = 24 * 3_600_000;
/// How long an authority's own certificate is good.
const AUTHORITY: Millis = 10 * 365 * DAY;
/// How long a certificate that it signs is good.
pub const CERTIFICATE: Millis = 90 * DAY;
/// What clocks may be apart.
const SKEW: Millis = 3_600_000;
/// Bytes of a request for a certificate.
const MAX_REQUEST: usize = 16 << 10;

/// Why there is no certificate. No text holds a key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a certificate can't be made")]
    Sign(#[from] rcgen::Error),
    #[error("this machine gives no random numbers")]
    NoRandom,
}

/// The signing key of a generation, as what a sealed value belongs to.
#[derive(Debug, Clone, Copy)]
pub struct SigningKey(pub i64);

impl Belongs for SigningKey {
    fn bytes(&self) -> Vec<u8> {
        [&b"kiln authority 1\0"[..], &self.0.to_be_bytes()].concat()
    }
}

/// A key that signs, and its certificate.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authority").field(&fingerprint(&self.certificate)).finish()
    }
}

/// An authority that was just made.
#[derive(Debug)]
pub struct Made {
    pub authority: Authority,
    /// Its key, certified by the authority before.
    pub bridge: Option<Vec<u8>>,
}

impl Authority {
    /// Makes one. Who trusts `before` trusts it by the bridge.
    pub fn make(id: Uuid, before: Option<&Self>, now: Millis) -> Result<Made, Error> {
        let key = KeyPair::generate()?;
        let mut params = params(&format!("Kiln authority {}", id.simple()), now, AUTHORITY)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.der().clone();
        let bridge = before.map(|before| params.signed_by(&key, &before.issuer)).transpose()?;
        let bridge = bridge.map(|bridge| bridge.der().to_vec());
        let authority = Self { issuer: Issuer::new(params, key), certificate };
        Ok(Made { authority, bridge })
    }

    /// One that was made before.
    pub fn open(certificate: &[u8], key: &[u8]) -> Result<Self, Error> {
        let certificate = CertificateDer::from(certificate.to_vec());
        let issuer = Issuer::from_ca_cert_der(&certificate, KeyPair::try_from(key)?)?;
        Ok(Self { issuer, certificate })
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its key, which is to be sealed at once.
    pub fn key(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.issuer.key().serialize_der())
    }

    /// A certificate for a server of these host names and addresses, and its new key.
    pub fn server(
        &self,
        names: &[String],
        now: Millis,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), Error> {
        let key = KeyPair::generate()?;
        let mut params = params("Kiln server", now, CERTIFICATE)?;
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        let certificate = self.sign(params, ExtendedKeyUsagePurpose::ServerAuth, &key)?;
        let key = PrivateKeyDer::try_from(key.serialize_der());
        let key = key.map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
        Ok((certificate, key))
    }

    /// A certificate that says that the key of the request is this client's.
    pub fn client(
        &self,
        name: &str,
        request: &Request,
        now: Millis,
        life: Millis,
    ) -> Result<Vec<u8>, Error> {
        let params = params(name, now, life)?;
        let key = &request.0.public_key;
        Ok(self.sign(params, ExtendedKeyUsagePurpose::ClientAuth, key)?.to_vec())
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        purpose: ExtendedKeyUsagePurpose,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, Error> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }
}

fn params(name: &str, now: Millis, life: Millis) -> Result<CertificateParams, Error> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|_| Error::NoRandom)?;
    // A serial number is positive.
    serial[0] &= 0x7f;
    let moment = |at: Millis| {
        date_time_ymd(1970, 1, 1) + Duration::from_millis(u64::try_from(at).unwrap_or_default())
    };
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = moment(now.saturating_sub(SKEW));
    params.not_after = moment(now.saturating_add(life));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// What an agent asks to be certified: a key whose possession the signature of the request proves. Whatever else it
/// asks for is passed over.
#[derive(Debug)]
pub struct Request(CertificateSigningRequestParams);

impl Request {
    /// Reads a PKCS#10 request in DER; says what is wrong with it.
    pub fn parse(der: &[u8]) -> Result<Self, &'static str> {
        if der.len() > MAX_REQUEST {
            return Err("must have at most 16 KiB");
        }
        let der = CertificateSigningRequestDer::from(der);
        let request = CertificateSigningRequestParams::from_der(&der);
        let request = request.map_err(|_| "must be a PKCS#10 request in DER, signed by its key")?;
        let strong = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519];
        if !strong.contains(&request.public_key.algorithm()) {
            return Err("must be for a key of ECDSA P-256 or Ed25519");
        }
        Ok(Self(request))
    }

    /// Of the key, as a certificate holds it.
    pub fn public_key_sha256(&self) -> Vec<u8> {
        Sha256::digest(self.0.public_key.subject_public_key_info()).to_vec()
    }
}

/// `sha256:` and the digest of a certificate in DER: what a client can pin an authority by.
pub fn fingerprint(certificate: &[u8]) -> String {
    let digest = Sha256::digest(certificate);
    digest.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// A certificate as a file holds it.
pub fn pem(certificate: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate), config)
}
