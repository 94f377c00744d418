//! The audit log: who did what, on what, when and from where. A record is written in the transaction of the act itself,
//! so that there is neither an act without its record nor a record of what did not happen.

use std::net::IpAddr;

use super::{App, Caller, Principal, Result};
use crate::store::{ActorKind, AuditAct, AuditFilter, AuditRow};

/// Who acts. Nobody in particular: the server itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Actor {
    principal: Option<Principal>,
    peer: Option<IpAddr>,
}

impl App {
    /// The same use cases; what they do is recorded as done by this caller.
    #[must_use]
    pub fn by(&self, caller: &Caller) -> Self {
        let actor = Actor { principal: Some(caller.principal.clone()), peer: caller.peer };
        Self(self.0.clone(), actor)
    }

    /// As `by`, where it is not known yet who calls.
    #[must_use]
    pub fn from_peer(&self, peer: Option<IpAddr>) -> Self {
        Self(self.0.clone(), Actor { principal: None, peer })
    }

    /// As `by`, from the same address.
    pub(super) fn as_principal(&self, principal: Principal) -> Self {
        Self(self.0.clone(), Actor { principal: Some(principal), peer: self.1.peer })
    }

    /// The record of an act of this actor, without its number.
    pub(super) fn record_of(&self, act: AuditAct) -> AuditRow {
        let (kind, id, name) = match &self.1.principal {
            None => (ActorKind::Server, String::new(), "server".to_owned()),
            Some(Principal::Token { id, name, .. }) => {
                (ActorKind::Token, id.to_string(), name.clone())
            }
            Some(Principal::Agent { id, name, .. }) => {
                (ActorKind::Agent, id.to_string(), name.clone())
            }
        };
        AuditRow {
            number: 0,
            at: self.0.clock.now(),
            actor_kind: kind,
            actor: id,
            actor_name: name,
            peer: self.1.peer.map(|peer| peer.to_string()),
            act,
        }
    }

    /// Records that match, the newest first: at most `limit` of those numbered below `before`.
    pub async fn list_audit(
        &self,
        filter: &AuditFilter,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AuditRow>> {
        Ok(self.0.store.audit(filter, before, limit).await?)
    }
}
