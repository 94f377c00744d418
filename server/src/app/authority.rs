//! The authorities of this farm: made once, shared by all servers of a database. Their signing keys are encrypted like
//! secrets.

use async_trait::async_trait;

use super::{App, Error, Result, secrets::cipher, work::Work};
use crate::{
    authority::{self, Authority, SigningKey},
    store::{self, AuditAct, AuthorityRow, Tx, jobs::Effects},
};

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

    /// The authority of a row, with its key.
    pub fn open_authority(&self, row: &AuthorityRow) -> Result<Authority> {
        let key = self.keys()?.open(SigningKey(row.generation), &row.key, &row.sealed);
        let key = zeroize::Zeroizing::new(key.map_err(|error| cipher("decrypt", error))?);
        Authority::open(&row.certificate, &key).map_err(|error| failed(&error))
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
