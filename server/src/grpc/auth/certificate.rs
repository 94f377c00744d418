//! Over TLS an agent is who has its credential and the certificate that belongs to it.

use kiln_core::Millis;
use subtle::ConstantTimeEq;
use tonic::Status;

use super::Security;
use crate::{app::Principal, grpc::status};

/// What an agent without a good certificate may call to have one.
const WITHOUT: &str = "AgentService/CertifyAgent";

/// Whether the connection was opened with the caller's own key, where the caller is an agent and the connection encrypted.
pub(super) fn check(
    method: &str,
    principal: &Principal,
    security: Option<&Security>,
    now: Millis,
) -> Result<(), Status> {
    let (Principal::Agent { certificate, .. }, Some(security)) = (principal, security) else {
        return Ok(());
    };
    if method == WITHOUT {
        return Ok(());
    }
    let refused = |why| Err(status::uncertified(why));
    let Some(certificate) = certificate else {
        return refused("no key of this agent was ever certified");
    };
    let Some(presented) = security.public_key_sha256 else {
        return refused("the agent presented no certificate");
    };
    if !bool::from(presented[..].ct_eq(&certificate.public_key_sha256)) {
        return refused("the certificate that was presented is not this agent's");
    }
    if certificate.ends_at <= now {
        return refused("the agent's certificate has ended");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kiln_core::id::AgentId;
    use uuid::Uuid;

    use super::*;
    use crate::store::AgentCertificate;

    #[test]
    fn an_agent_needs_its_own_certificate_over_tls_alone() {
        let id = AgentId::from_uuid(Uuid::nil());
        let agent = |key: Option<u8>| Principal::Agent {
            id,
            name: "a".into(),
            certificate: key
                .map(|key| AgentCertificate { public_key_sha256: vec![key; 32], ends_at: 10 }),
        };
        let over = |key: Option<u8>| Security { public_key_sha256: key.map(|key| [key; 32]) };
        let method = "AgentService/Session";
        let passes = |principal: &Principal, security: Option<&Security>, now| {
            check(method, principal, security, now).is_ok()
        };
        assert!(passes(&agent(Some(1)), Some(&over(Some(1))), 9));
        assert!(!passes(&agent(Some(1)), Some(&over(Some(1))), 10), "it has ended");
        assert!(!passes(&agent(Some(1)), Some(&over(Some(2))), 9), "another's");
        assert!(!passes(&agent(Some(1)), Some(&over(None)), 9));
        assert!(!passes(&agent(None), Some(&over(Some(1))), 9));
        assert!(passes(&agent(None), None, 9), "nothing is encrypted");
        assert!(check(WITHOUT, &agent(None), Some(&over(None)), 9).is_ok());
        assert!(passes(&super::super::anyone(), Some(&over(None)), 9), "a token needs none");
    }
}
