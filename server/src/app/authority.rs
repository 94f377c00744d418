//! The authorities of this farm: made once, shared by all servers of a database. Their signing keys are encrypted like
//! secrets.

use async_trait::async_trait;

use kiln_core::{Millis, id::AgentId};
use subtle::ConstantTimeEq;

use super::{App, Error, Principal, Result, secrets::cipher, work::Work};
use crate::{
    authority::{self, Authority, Request, SigningKey},
    store::{self, AgentCertificate, AuditAct, AuthorityRow, Tx, jobs::Effects},
};

/// An agent asks so often for a new certificate: it hears of a new authority in time.
const DAY: Millis = 24 * 3_600_000;
/// Longer than any certificate that is not an authority's own.
const MAX_GRACE: Millis = 366 * 24 * 3_600_000;

impl App {
    /// The authorities that are trusted now, the newest first: the one that signs.
    pub async fn authorities(&self) -> Result<Vec<AuthorityRow>> {
        let now = self.0.clock.now();
        let mut rows = self.0.store.authorities().await?;
        rows.retain(|row| row.trusted_until.is_none_or(|until| now < until));
        Ok(rows)
    }

    /// As `authorities`; the first one is made where there is none.
    pub async fn ensure_authority(&self) -> Result<Vec<AuthorityRow>> {
        let rows = self.authorities().await?;
        if !rows.is_empty() {
            return Ok(rows);
        }
        match self.write(&Make(self.fresh_authority(1, None)?)).await {
            // Another server that started at the same moment was quicker.
            Ok(()) | Err(Error::Store(store::Error::Exists { .. })) => self.authorities().await,
            Err(error) => Err(error),
        }
    }

    /// Makes a new authority, which signs from now on; those before are trusted for `grace` longer. Where there was none,
    /// it is the first. Returns those that are trusted.
    pub async fn rotate_authority(&self, grace: Millis) -> Result<Vec<AuthorityRow>> {
        if !(0..=MAX_GRACE).contains(&grace) {
            return Err(Error::invalid("grace_ms", "must be between zero and a year"));
        }
        let before = self.0.store.authorities().await?;
        let signer = before.first().map(|row| self.open_authority(row)).transpose()?;
        let generation = before.first().map_or(1, |row| row.generation + 1);
        let fresh = self.fresh_authority(generation, signer.as_ref())?;
        let until = self.0.clock.now().saturating_add(grace);
        match self.write(&Rotate { fresh, before, until }).await {
            Err(Error::Store(store::Error::Exists { .. })) => {
                Err(Error::Busy("another authority was made at the same moment; look at it first"))
            }
            other => other,
        }?;
        self.authorities().await
    }

    /// Encrypts the signing keys with the first key of secrets; says how many.
    pub(super) async fn reencrypt_authorities(&self) -> Result<u64> {
        let keys = self.keys()?;
        let mut rows = self.0.store.authorities().await?;
        rows.retain(|row| row.key != keys.first());
        for row in &mut rows {
            let owner = SigningKey(row.generation);
            let key = keys.open(owner, &row.key, &row.sealed);
            let key = zeroize::Zeroizing::new(key.map_err(|error| cipher("decrypt", error))?);
            row.sealed = keys.seal(owner, &key).map_err(|error| cipher("encrypt", error))?;
            keys.first().clone_into(&mut row.key);
        }
        if !rows.is_empty() {
            self.write(&Reencrypt(&rows)).await?;
        }
        Ok(rows.len() as u64)
    }

    /// The authority of a row, with its key.
    pub fn open_authority(&self, row: &AuthorityRow) -> Result<Authority> {
        let key = self.keys()?.open(SigningKey(row.generation), &row.key, &row.sealed);
        let key = zeroize::Zeroizing::new(key.map_err(|error| cipher("decrypt", error))?);
        Authority::open(&row.certificate, &key).map_err(|error| failed(&error))
    }

    /// Certifies that this key is the agent's; it stays the only one that is.
    pub async fn certify(&self, agent: AgentId, request: &Request) -> Result<Certified> {
        let authorities = self.authorities().await?;
        let Some(newest) = authorities.first() else {
            return Err(Error::Precondition {
                code: "NO_AUTHORITY",
                message: "this server has no authority that could sign a certificate: it was never started with tls.enabled".to_owned(),
            });
        };
        let row = self.agent(agent).await?;
        let now = self.0.clock.now();
        let life = Millis::try_from(self.timing().certificate.as_millis()).unwrap_or(Millis::MAX);
        let signer = self.open_authority(newest)?;
        let certificate = signer.client(&agent.to_string(), request, now, life);
        let certificate = certificate.map_err(|error| failed(&error))?;
        let ends_at = now.saturating_add(life);
        let known = AgentCertificate { public_key_sha256: request.public_key_sha256(), ends_at };
        let this = Principal::Agent { id: agent, name: row.name, certificate: row.certificate };
        self.as_principal(this).write(&Certify { agent, certificate: &known }).await?;
        let pem = |row: &AuthorityRow| authority::pem(&row.certificate);
        Ok(Certified {
            certificate_pem: authority::pem(&certificate),
            renew_at: now.saturating_add(DAY.min(life / 3 * 2)),
            ends_at,
            authorities_pem: authorities.iter().map(pem).collect(),
        })
    }

    fn fresh_authority(&self, generation: i64, before: Option<&Authority>) -> Result<AuthorityRow> {
        let now = self.0.clock.now();
        let keys = self.keys()?;
        let made =
            Authority::make(self.0.clock.id(), before, now).map_err(|error| failed(&error))?;
        let sealed = keys.seal(SigningKey(generation), &made.authority.key());
        Ok(AuthorityRow {
            generation,
            certificate: made.authority.certificate().to_vec(),
            bridge: made.bridge,
            key: keys.first().to_owned(),
            sealed: sealed.map_err(|error| cipher("encrypt", error))?,
            created_at: now,
            trusted_until: None,
        })
    }
}

/// What an agent is given.
#[derive(Debug, Clone)]
pub struct Certified {
    pub certificate_pem: String,
    pub renew_at: Millis,
    pub ends_at: Millis,
    /// All that are trusted, the newest first.
    pub authorities_pem: String,
}

/// An error of the library can't hold a key, and is of no use to a caller.
pub(super) fn failed(error: &authority::Error) -> Error {
    tracing::error!(error = error as &dyn std::error::Error, "a certificate can't be made");
    Error::Io { action: "make a certificate", source: std::io::Error::other(error.to_string()) }
}

struct Make(AuthorityRow);

#[async_trait]
impl Work for Make {
    type Output = ();

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<((), Effects)> {
        tx.insert_authority(&self.0).await?;
        Ok(((), Effects::default()))
    }

    fn act(&self, (): &()) -> Option<AuditAct> {
        let name = authority::fingerprint(&self.0.certificate);
        Some(AuditAct::new("authority.make", self.0.generation, &name))
    }
}

struct Certify<'a> {
    agent: AgentId,
    certificate: &'a AgentCertificate,
}

#[async_trait]
impl Work for Certify<'_> {
    /// The name of the agent, where the key was not its own before.
    type Output = Option<String>;

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<(Self::Output, Effects)> {
        let row = tx.lock_agents(&[self.agent]).await?.pop();
        let mut row = row.ok_or_else(|| Error::not_found("agent", self.agent))?;
        let is_other = |known: &AgentCertificate| {
            !bool::from(known.public_key_sha256.ct_eq(&self.certificate.public_key_sha256))
        };
        if row.certificate.as_ref().is_some_and(is_other) {
            return Err(Error::Precondition {
                code: "OTHER_KEY",
                message: "another key is this agent's; evict the agent and enrol it anew"
                    .to_owned(),
            });
        }
        let is_first = row.certificate.is_none();
        row.certificate = Some(self.certificate.clone());
        tx.save_agents(std::slice::from_ref(&row)).await?;
        Ok((is_first.then_some(row.name), Effects::default()))
    }

    fn act(&self, name: &Option<String>) -> Option<AuditAct> {
        name.as_ref().map(|name| AuditAct::new("agent.certify", self.agent, name))
    }
}

struct Rotate {
    fresh: AuthorityRow,
    before: Vec<AuthorityRow>,
    until: Millis,
}

#[async_trait]
impl Work for Rotate {
    type Output = ();

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<((), Effects)> {
        tx.insert_authority(&self.fresh).await?;
        for row in &self.before {
            let until = row.trusted_until.map_or(self.until, |before| before.min(self.until));
            tx.save_authority(&AuthorityRow { trusted_until: Some(until), ..row.clone() }).await?;
        }
        tx.end_certificates(self.until).await?;
        Ok(((), Effects::default()))
    }

    fn act(&self, (): &()) -> Option<AuditAct> {
        let name = authority::fingerprint(&self.fresh.certificate);
        let act = AuditAct::new("authority.rotate", self.fresh.generation, &name);
        let until = self.until.saturating_sub(self.fresh.created_at) / 1_000;
        Some(act.with(format!("those before are trusted for {until} s more")))
    }
}

struct Reencrypt<'a>(&'a [AuthorityRow]);

#[async_trait]
impl Work for Reencrypt<'_> {
    type Output = ();

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<((), Effects)> {
        for row in self.0 {
            tx.save_authority(row).await?;
        }
        Ok(((), Effects::default()))
    }
}
