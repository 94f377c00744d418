//! The table: who may call which method. docs/access.md shows it, and a test keeps the two equal.

use std::fmt;

use tonic::Status;

use crate::{
    app::{Principal, Role},
    grpc::status,
};

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Anyone: what it needs to know is in the message.
    Anyone,
    /// Agents only.
    Agents,
    /// Tokens of this role or above.
    Tokens(Role),
    /// Agents, and tokens of this role or above.
    AgentsAnd(Role),
    /// Tokens of this role or above that are not bound to a project.
    Farm(Role),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::Agents => f.write_str("agents"),
            Self::Tokens(role) => f.write_str(role.as_str()),
            Self::AgentsAnd(role) => write!(f, "{}, agents", role.as_str()),
            Self::Farm(role) => write!(f, "{}, not bound to a project", role.as_str()),
        }
    }
}

/// Paths outside of `kiln.v1` that are served to anyone: probes, and the description of a protocol that is public.
const OPEN: &[&str] = &["/grpc.health.v1.", "/grpc.reflection.", "/healthz", "/readyz"];

pub(super) fn is_open(path: &str) -> bool {
    OPEN.iter().any(|prefix| path.starts_with(prefix))
}

/// What a server counts.
pub(super) const METRICS: &str = "/metrics";

/// Pages over plain HTTP that are not for everyone.
const PAGES: &[(&str, Who)] = &[(METRICS, Who::Farm(Role::Reader))];

pub(super) fn is_page(path: &str) -> bool {
    PAGES.iter().any(|(page, _)| *page == path)
}

/// Every method of `kiln.v1`; one that is missing here can't be called.
pub(super) const METHODS: &[(&str, Who)] = &[
    ("AdminService/CreateToken", Who::Farm(Role::Admin)),
    ("AdminService/DrainAgent", Who::Farm(Role::Admin)),
    ("AdminService/EvictAgent", Who::Farm(Role::Admin)),
    ("AdminService/GetQueue", Who::Farm(Role::Reader)),
    ("AdminService/ListAgents", Who::Farm(Role::Reader)),
    ("AdminService/ListAudit", Who::Farm(Role::Admin)),
    ("AdminService/ListAuthorities", Who::Farm(Role::Reader)),
    ("AdminService/ListTokens", Who::Farm(Role::Admin)),
    ("AdminService/PauseAgent", Who::Farm(Role::Admin)),
    ("AdminService/ResumeAgent", Who::Farm(Role::Admin)),
    ("AdminService/RevokeToken", Who::Farm(Role::Admin)),
    ("AdminService/RotateAuthority", Who::Farm(Role::Admin)),
    ("AdminService/RotateToken", Who::Farm(Role::Admin)),
    ("AgentService/CertifyAgent", Who::Agents),
    ("AgentService/EnrollAgent", Who::Anyone),
    ("AgentService/Session", Who::Agents),
    ("ArtifactService/GetArtifact", Who::AgentsAnd(Role::Reader)),
    ("ArtifactService/ListArtifacts", Who::Tokens(Role::Reader)),
    ("ArtifactService/PutArtifact", Who::AgentsAnd(Role::Submitter)),
    ("BuildService/CancelBuild", Who::Tokens(Role::Submitter)),
    ("BuildService/ExplainJob", Who::Tokens(Role::Reader)),
    ("BuildService/GetBuild", Who::Tokens(Role::Reader)),
    ("BuildService/ListBuilds", Who::Tokens(Role::Reader)),
    ("BuildService/RetryBuild", Who::Tokens(Role::Submitter)),
    ("BuildService/SubmitBuild", Who::Tokens(Role::Submitter)),
    ("BuildService/WatchBuild", Who::Tokens(Role::Reader)),
    ("LogService/FollowLog", Who::Tokens(Role::Reader)),
    ("LogService/PushLog", Who::Agents),
    ("LogService/ReadLog", Who::Tokens(Role::Reader)),
    ("ProjectService/CreateProject", Who::Farm(Role::Admin)),
    ("ProjectService/GetProject", Who::Tokens(Role::Reader)),
    ("ProjectService/ListProjects", Who::Tokens(Role::Reader)),
    ("ProjectService/UpdateProject", Who::Tokens(Role::Admin)),
    ("SecretService/DeleteSecret", Who::Tokens(Role::Admin)),
    ("SecretService/ListSecrets", Who::Tokens(Role::Submitter)),
    ("SecretService/ReencryptSecrets", Who::Farm(Role::Admin)),
    ("SecretService/SetSecret", Who::Tokens(Role::Admin)),
];

/// Who may call a method, or read a page.
pub(super) fn rule(method: &str) -> Option<Who> {
    METHODS.iter().chain(PAGES).find(|(name, _)| *name == method).map(|(_, who)| *who)
}

/// A higher role may do what a lower one may; an enroller may only enrol.
const fn rank(role: Role) -> u8 {
    match role {
        Role::Enroller => 0,
        Role::Reader => 1,
        Role::Submitter => 2,
        Role::Admin => 3,
    }
}

/// Whether this caller may call a method of this rule.
pub(super) fn admit(who: Who, principal: &Principal) -> Result<(), Status> {
    match (who, principal) {
        (Who::Anyone, _) | (Who::Agents | Who::AgentsAnd(_), Principal::Agent { .. }) => Ok(()),
        (Who::Agents, Principal::Token { .. }) => Err(status::denied(
            "only agents may call this",
            "present the credential of an enrolled agent",
        )),
        (Who::Tokens(_) | Who::Farm(_), Principal::Agent { .. }) => Err(status::denied(
            "agents may not call this",
            "use a token instead of the credential of an agent",
        )),
        (Who::Farm(_), Principal::Token { project: Some(_), .. }) => Err(status::denied(
            "the token is bound to a project, and this concerns the whole farm",
            "use a token that is not bound to a project",
        )),
        (
            Who::Tokens(least) | Who::AgentsAnd(least) | Who::Farm(least),
            Principal::Token { role, .. },
        ) => {
            if rank(*role) >= rank(least) {
                return Ok(());
            }
            Err(status::denied(
                format!("the token's role {:?} is not enough", role.as_str()),
                format!("a token of role {:?} may do this", least.as_str()),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kiln_core::id::{AgentId, ProjectId, TokenId};
    use prost::Message;
    use uuid::Uuid;

    use super::*;

    fn token(role: Role, project: Option<u128>) -> Principal {
        Principal::Token {
            id: TokenId::from_uuid(Uuid::nil()),
            name: "t".into(),
            role,
            project: project.map(|n| ProjectId::from_uuid(Uuid::from_u128(n))),
        }
    }

    #[test]
    fn every_method_is_in_the_table_and_no_other() {
        let set = prost_types::FileDescriptorSet::decode(kiln_proto::DESCRIPTORS).unwrap();
        let services = set.file.iter().flat_map(|file| &file.service);
        let declared: BTreeSet<String> = services
            .flat_map(|service| {
                service.method.iter().map(|method| format!("{}/{}", service.name(), method.name()))
            })
            .collect();
        let listed: BTreeSet<String> = METHODS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(listed, declared);
        assert_eq!(listed.len(), METHODS.len(), "a method is listed twice");
    }

    #[test]
    fn the_documented_table_is_the_one_that_is_checked() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/access.md");
        let text = std::fs::read_to_string(path).unwrap();
        let method = |line: &&str| line.starts_with("| `") && line.contains("Service/");
        let documented: Vec<&str> = text.lines().filter(method).collect();
        let wanted: Vec<String> =
            METHODS.iter().map(|(name, who)| format!("| `{name}` | {who} |")).collect();
        assert_eq!(documented, wanted, "write the lines on the right into docs/access.md");
    }

    /// Methods that a caller may call.
    fn allowed(principal: &Principal) -> BTreeSet<&'static str> {
        let admitted = METHODS.iter().filter(|(_, who)| admit(*who, principal).is_ok());
        admitted.map(|(name, _)| *name).collect()
    }

    #[test]
    fn agents_push_and_fetch_and_nothing_else() {
        let id = AgentId::from_uuid(Uuid::nil());
        let agent = Principal::Agent { id, name: "a".into(), certificate: None };
        let wanted = [
            "AgentService/CertifyAgent",
            "AgentService/EnrollAgent",
            "AgentService/Session",
            "ArtifactService/GetArtifact",
            "ArtifactService/PutArtifact",
            "LogService/PushLog",
        ];
        assert_eq!(allowed(&agent), wanted.into());
    }

    #[test]
    fn each_role_may_do_what_the_one_before_may_but_an_enroller_only_enrols() {
        let [reader, submitter, admin] =
            [Role::Reader, Role::Submitter, Role::Admin].map(|role| allowed(&token(role, None)));
        assert!(reader.is_subset(&submitter) && submitter.is_subset(&admin));
        assert!(!reader.contains("BuildService/SubmitBuild"));
        assert!(!submitter.contains("AdminService/CreateToken"));
        assert_eq!(admin.len(), METHODS.len() - 3, "all but CertifyAgent, Session and PushLog");
        assert_eq!(allowed(&token(Role::Enroller, None)), ["AgentService/EnrollAgent"].into());
        let bound = allowed(&token(Role::Admin, Some(1)));
        assert!(bound.iter().all(|method| !method.starts_with("AdminService/")));
    }

    #[test]
    fn only_probes_and_the_description_of_the_protocol_are_open() {
        assert!(is_open("/healthz") && is_open("/grpc.health.v1.Health/Check"));
        assert!(!is_open("/") && !is_open("/kiln.v1.AdminService/ListTokens"));
    }
}
