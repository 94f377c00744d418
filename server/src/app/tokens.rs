//! Bearer tokens: made, listed, rotated, revoked, and judged.
//!
//! A secret's text is `kiln_<token id>_<43 characters>`; its row holds the SHA-256 of the whole text. An agent's is
//! `agt_<agent id>.<64 hexadecimal digits>`; its row holds the SHA-256 of the bytes behind the dot.

use std::fmt::Write;

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kiln_core::{
    Millis,
    id::{AgentId, ProjectId, TokenId},
    spec::is_name,
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::{App, Error, Principal, Result, work::Work};
use crate::store::{AuditAct, Role, TokenRow, Tx, jobs::Effects};

/// Random bytes of a secret.
const SECRET: usize = 32;
/// How long a token for enrolment lasts where nobody says it.
const ENROLLER: Millis = 3_600_000;
/// How long the secret before a rotation may still be taken.
const MAX_GRACE: Millis = 30 * 24 * 3_600_000;
/// Bytes of a bearer text that are looked at.
const MAX_BEARER: usize = 200;
const UNKNOWN: Error =
    Error::Unauthenticated("the token is not valid; make a new one with `kiln token create`");
const UNKNOWN_AGENT: Error = Error::Unauthenticated("the agent is not known; enrol it again");

impl App {
    /// Makes a token; returns its secret, which is not stored.
    pub async fn create_token(
        &self,
        name: &str,
        role: Role,
        project: Option<&str>,
        duration: Option<Millis>,
    ) -> Result<(TokenRow, String)> {
        check_name(name)?;
        if duration.is_some_and(|duration| duration <= 0) {
            return Err(Error::invalid("duration", "must be longer than nothing"));
        }
        if role == Role::Enroller && project.is_some() {
            let message = "must be empty: an agent serves all projects";
            return Err(Error::invalid("project", message));
        }
        // It lets a machine in: one that was forgotten must not do so for ever.
        let duration = duration.or_else(|| (role == Role::Enroller).then_some(ENROLLER));
        let project = match project {
            Some(name) => Some(self.project(name).await?.id),
            None => None,
        };
        let id = TokenId::from_uuid(self.0.clock.id());
        let secret = fresh_secret(id)?;
        let token = self.token(id, name, role, &secret, project, duration);
        self.insert(&token).await?;
        Ok((token, secret))
    }

    /// Makes the first administrator's token with a secret chosen by the caller, where there is none of that name;
    /// returns whether this secret is that token's.
    pub async fn ensure_admin_token(&self, name: &str, secret: &str) -> Result<bool> {
        check_name(name)?;
        let id = token_id(secret).ok_or_else(|| {
            Error::invalid("secret", "must be like kiln_<32 hex>_<43 characters>")
        })?;
        match self.insert(&self.token(id, name, Role::Admin, secret, None, None)).await {
            Err(Error::Exists { .. }) => Ok(self.tokens().await?.iter().any(|row| row.id == id)),
            other => other.map(|()| true),
        }
    }

    pub async fn tokens(&self) -> Result<Vec<TokenRow>> {
        Ok(self.0.store.tokens().await?)
    }

    pub async fn revoke_token(&self, id: TokenId) -> Result<()> {
        self.write(&Revoke(id)).await.map(drop)
    }

    /// Gives a token, by name or id, a new secret; the old one is taken for `grace` longer.
    pub async fn rotate_token(&self, token: &str, grace: Millis) -> Result<(TokenRow, String)> {
        if !(0..=MAX_GRACE).contains(&grace) {
            return Err(Error::invalid("grace_ms", "must be between zero and 30 days"));
        }
        let tokens = self.0.store.tokens().await?;
        let found = tokens.iter().find(|row| row.name == token || row.id.to_string() == token);
        let id = found.ok_or_else(|| Error::not_found("token", token))?.id;
        let secret = fresh_secret(id)?;
        let digest = Sha256::digest(secret.as_bytes()).to_vec();
        let row = self.write(&Rotate { id, digest, grace }).await?;
        Ok((row, secret))
    }

    /// Who presents this bearer text: a token or an agent. Constant-time comparison of digests.
    pub async fn authenticate(&self, bearer: &str) -> Result<Principal> {
        if bearer.starts_with("agt_") && bearer.len() <= MAX_BEARER {
            return self.authenticate_agent(bearer).await;
        }
        let token = self.valid_token(bearer).await?;
        Ok(Principal::Token {
            id: token.id,
            name: token.name,
            role: token.role,
            project: token.project,
        })
    }

    /// Whether who presented a good credential once could still present it.
    pub async fn is_valid(&self, principal: &Principal) -> Result<bool> {
        Ok(match principal {
            // Who needs no token.
            Principal::Token { id, .. } if id.uuid().is_nil() => true,
            Principal::Token { id, .. } => {
                let now = self.0.clock.now();
                let token = self.0.store.token(*id).await?;
                token.is_some_and(|token| token.expires_at.is_none_or(|end| now < end))
            }
            Principal::Agent { id, .. } => self.0.store.agent(*id).await?.is_some(),
        })
    }

    /// The token of this secret, neither revoked nor expired.
    pub(super) async fn valid_token(&self, secret: &str) -> Result<TokenRow> {
        if secret.len() > MAX_BEARER {
            return Err(UNKNOWN);
        }
        let id = token_id(secret).ok_or(UNKNOWN)?;
        let token = self.0.store.token(id).await?.ok_or(UNKNOWN)?;
        let now = self.0.clock.now();
        let digest = Sha256::digest(secret.as_bytes());
        let is_new = bool::from(digest[..].ct_eq(&token.secret_sha256));
        let is_old = token
            .old_secret
            .as_ref()
            .is_some_and(|(old, until)| bool::from(digest[..].ct_eq(old)) && now < *until);
        if !is_new && !is_old {
            return Err(UNKNOWN);
        }
        if token.expires_at.is_some_and(|end| end <= now) {
            return Err(Error::Unauthenticated("the token has expired; make a new one"));
        }
        self.0.uses.note(&token, now);
        Ok(token)
    }

    async fn authenticate_agent(&self, bearer: &str) -> Result<Principal> {
        let (id, credential) = bearer.split_once('.').ok_or(UNKNOWN_AGENT)?;
        let id: AgentId = id.parse().map_err(|_| UNKNOWN_AGENT)?;
        let credential = unhex(credential).ok_or(UNKNOWN_AGENT)?;
        let digest = Sha256::digest(credential);
        let Some(agent) = self.0.store.agent(id).await? else {
            let evicted = self.0.store.evicted_agent(id).await?.ok_or(UNKNOWN_AGENT)?;
            let known = bool::from(digest[..].ct_eq(&evicted.credential_sha256));
            return Err(if known { Error::Evicted } else { UNKNOWN_AGENT });
        };
        if bool::from(digest[..].ct_eq(&agent.credential_sha256)) {
            Ok(Principal::Agent { id, name: agent.name, certificate: agent.certificate })
        } else {
            Err(UNKNOWN_AGENT)
        }
    }

    fn token(
        &self,
        id: TokenId,
        name: &str,
        role: Role,
        secret: &str,
        project: Option<ProjectId>,
        duration: Option<Millis>,
    ) -> TokenRow {
        let now = self.0.clock.now();
        TokenRow {
            id,
            name: name.to_owned(),
            role,
            project,
            secret_sha256: Sha256::digest(secret.as_bytes()).to_vec(),
            created_at: now,
            expires_at: duration.map(|duration| now.saturating_add(duration)),
            used: None,
            last_used_at: None,
            old_secret: None,
        }
    }

    async fn insert(&self, token: &TokenRow) -> Result<()> {
        let tokens = self.0.store.tokens().await?;
        let is_taken = tokens.iter().any(|other| other.name == token.name);
        let result =
            if is_taken { Err(exists(&token.name)) } else { self.write(&Insert(token)).await };
        match result {
            Err(Error::Store(crate::store::Error::Exists { .. })) => Err(exists(&token.name)),
            other => other,
        }
    }
}

fn exists(name: &str) -> Error {
    let message = format!("there is a token {name:?} already; choose another name or revoke it");
    Error::Exists { field: "name", message }
}

/// The text of a new secret.
fn fresh_secret(id: TokenId) -> Result<String> {
    let mut random = [0; SECRET];
    getrandom::fill(&mut random)
        .map_err(|error| Error::Io { action: "make a secret", source: error.into() })?;
    Ok(format!("kiln_{}_{}", id.uuid().simple(), URL_SAFE_NO_PAD.encode(random)))
}

pub(super) fn check_name(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    Err(Error::invalid(
        "name",
        "must be 1 to 100 characters of [A-Za-z0-9._-], not beginning with a dot or a dash",
    ))
}

fn token_id(secret: &str) -> Option<TokenId> {
    let (id, random) = secret.strip_prefix("kiln_")?.split_once('_')?;
    let uuid = Uuid::try_parse(id).ok().filter(|_| id.len() == 32)?;
    (random.len() == 43).then(|| TokenId::from_uuid(uuid))
}

/// Bytes of 64 hexadecimal digits.
fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

struct Insert<'a>(&'a TokenRow);

#[async_trait]
impl Work for Insert<'_> {
    type Output = ();

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<((), Effects)> {
        tx.insert_token(self.0).await?;
        Ok(((), Effects::default()))
    }

    fn act(&self, (): &()) -> Option<AuditAct> {
        // Writing to a string can't fail.
        let mut detail = format!("role {}", self.0.role.as_str());
        if let Some(project) = self.0.project {
            let _ = write!(detail, ", bound to {project}");
        }
        if let Some(end) = self.0.expires_at {
            let _ = write!(detail, ", for {} s", end.saturating_sub(self.0.created_at) / 1_000);
        }
        Some(AuditAct::new("token.create", self.0.id, &self.0.name).with(detail))
    }
}

struct Revoke(TokenId);

#[async_trait]
impl Work for Revoke {
    type Output = String;

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<(String, Effects)> {
        let token = tx.lock_token(self.0).await?;
        let token = token.ok_or_else(|| Error::not_found("token", self.0))?;
        tx.delete_token(self.0).await?;
        Ok((token.name, Effects::default()))
    }

    fn act(&self, name: &String) -> Option<AuditAct> {
        Some(AuditAct::new("token.revoke", self.0, name))
    }
}

struct Rotate {
    id: TokenId,
    digest: Vec<u8>,
    grace: Millis,
}

#[async_trait]
impl Work for Rotate {
    type Output = TokenRow;

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<(TokenRow, Effects)> {
        let token = tx.lock_token(self.id).await?;
        let mut token = token.ok_or_else(|| Error::not_found("token", self.id))?;
        let old = std::mem::replace(&mut token.secret_sha256, self.digest.clone());
        let until = app.0.clock.now().saturating_add(self.grace);
        token.old_secret = (self.grace > 0).then_some((old, until));
        tx.save_token(&token).await?;
        Ok((token, Effects::default()))
    }

    fn act(&self, token: &TokenRow) -> Option<AuditAct> {
        let act = AuditAct::new("token.rotate", self.id, &token.name);
        Some(act.with(format!("the old secret is taken for {} s more", self.grace / 1_000)))
    }
}
