//! Enrolment: a single-use token becomes an agent. Said again within ten minutes, it is the same agent, so that a lost
//! answer burns nothing.

use async_trait::async_trait;
use kiln_core::{
    Millis,
    agent::{Admission, Load, Profile},
    id::{AgentId, TokenId},
};
use subtle::ConstantTimeEq;

use super::{App, Error, Principal, Result, tokens::check_name, work::Work};
use crate::store::{self, AgentRow, AuditAct, Role, Tx, jobs::Effects};

/// How long a used token gives its agent again.
const REPEAT_MS: Millis = 10 * 60 * 1_000;
const SHA256: usize = 32;

impl App {
    /// Turns an enroller token into an agent. `secret` is what the token's bearer presents.
    pub async fn enroll(
        &self,
        secret: &str,
        name: &str,
        credential_sha256: &[u8],
    ) -> Result<AgentId> {
        check_name(name)?;
        if credential_sha256.len() != SHA256 {
            return Err(Error::invalid("credential_sha256", "must have 32 bytes"));
        }
        let token = self.valid_token(secret).await?;
        if token.role != Role::Enroller {
            return Err(Error::Denied(
                "this token does not enrol agents; make one with the role enroller",
            ));
        }
        if token.project.is_some() {
            return Err(Error::Denied(
                "this token is bound to a project, and an agent serves all of them; make one that is not",
            ));
        }
        let enroller = Principal::Token {
            id: token.id,
            name: token.name,
            role: token.role,
            project: token.project,
        };
        let agent = AgentId::from_uuid(self.0.clock.id());
        let enrol = Enrol { token: token.id, agent, name, credential_sha256 };
        match self.as_principal(enroller).write(&enrol).await {
            Err(Error::Store(store::Error::Exists { .. })) => {
                let message =
                    format!("there is an agent {name:?} already; choose another name or evict it");
                Err(Error::Exists { field: "name", message })
            }
            other => other,
        }
    }
}

struct Enrol<'a> {
    token: TokenId,
    agent: AgentId,
    name: &'a str,
    credential_sha256: &'a [u8],
}

#[async_trait]
impl Work for Enrol<'_> {
    type Output = AgentId;

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<(AgentId, Effects)> {
        let now = app.0.clock.now();
        let token = tx.lock_token(self.token).await?;
        let mut token = token.ok_or(Error::Unauthenticated("the token was revoked"))?;
        if let Some((agent, at)) = token.used {
            let known = tx.lock_agents(&[agent]).await?.pop();
            let same = known.is_some_and(|known| {
                known.name == self.name
                    && bool::from(known.credential_sha256.ct_eq(self.credential_sha256))
            });
            return if same && now.saturating_sub(at) < REPEAT_MS {
                Ok((agent, Effects::default()))
            } else {
                Err(Error::Denied("the token was used before; make a new one for each agent"))
            };
        }
        tx.insert_agent(&AgentRow {
            id: self.agent,
            name: self.name.to_owned(),
            credential_sha256: self.credential_sha256.to_vec(),
            admission: Admission::Open,
            profile: Profile::default(),
            load: Load::default(),
            created_at: now,
            seen_at: now,
            epoch: 0,
            certificate: None,
        })
        .await?;
        token.used = Some((self.agent, now));
        tx.save_token(&token).await?;
        Ok((self.agent, Effects::default()))
    }

    fn act(&self, agent: &AgentId) -> Option<AuditAct> {
        // A repeated answer is the same agent again.
        Some(AuditAct::new("agent.enrol", agent, self.name).changed(*agent == self.agent))
    }
}
