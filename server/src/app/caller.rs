//! Who asks for something.

use std::net::IpAddr;

use kiln_core::id::{AgentId, ProjectId, TokenId};

use super::Role;
use crate::store::AgentCertificate;

/// Who presents a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    Token { id: TokenId, name: String, role: Role, project: Option<ProjectId> },
    Agent { id: AgentId, name: String, certificate: Option<AgentCertificate> },
}

impl Principal {
    pub fn name(&self) -> &str {
        match self {
            Self::Token { name, .. } | Self::Agent { name, .. } => name,
        }
    }
}

/// Who asks, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub principal: Principal,
    /// Address at the other end of the connection, where it is known.
    pub peer: Option<IpAddr>,
}
