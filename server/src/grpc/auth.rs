//! Who may call what: a tower layer in front of all services.
//!
//! It knows bearer texts and a table of methods, nothing of messages. What a token of one project may touch inside a
//! method is asked of [`within`] by the service, once it knows the project.

use std::{
    future::ready,
    task::{Context, Poll},
};

use futures::{FutureExt, future::BoxFuture};
use kiln_core::id::{ProjectId, TokenId};
use tonic::{
    Request, Status,
    codegen::http::{self, header::AUTHORIZATION},
};
use tower::{Layer, Service};

use super::status;
use crate::app::{App, Principal, views::Role};

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
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

const PREFIX: &str = "/kiln.v1.";

/// Every method of `kiln.v1`; one that is missing here can't be called.
const METHODS: &[(&str, Who)] = &[
    ("AdminService/CreateToken", Who::Farm(Role::Admin)),
    ("AdminService/DrainAgent", Who::Farm(Role::Admin)),
    ("AdminService/EvictAgent", Who::Farm(Role::Admin)),
    ("AdminService/GetQueue", Who::Farm(Role::Reader)),
    ("AdminService/ListAgents", Who::Farm(Role::Reader)),
    ("AdminService/ListTokens", Who::Farm(Role::Admin)),
    ("AdminService/PauseAgent", Who::Farm(Role::Admin)),
    ("AdminService/ResumeAgent", Who::Farm(Role::Admin)),
    ("AdminService/RevokeToken", Who::Farm(Role::Admin)),
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
];

fn rule(method: &str) -> Option<Who> {
    METHODS.iter().find(|(name, _)| *name == method).map(|(_, who)| *who)
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
fn admit(who: Who, principal: &Principal) -> Result<(), Status> {
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

/// Who calls; the layer has put it there.
pub fn principal<T>(request: &Request<T>) -> Result<Principal, Status> {
    request
        .extensions()
        .get::<Principal>()
        .cloned()
        .ok_or_else(|| status::unauthenticated("no credential was presented"))
}

/// The only project that a caller may touch, if it is bound to one.
pub fn bound(principal: &Principal) -> Option<ProjectId> {
    match principal {
        Principal::Token { project, .. } => *project,
        Principal::Agent { .. } => None,
    }
}

/// Whether the caller may touch this project.
pub fn within(principal: &Principal, project: ProjectId) -> Result<(), Status> {
    match bound(principal) {
        Some(own) if own != project => Err(status::denied(
            "the token is bound to another project",
            "use a token of this project, or one that is not bound to a project",
        )),
        _ => Ok(()),
    }
}

/// Authenticates callers and checks the table.
#[derive(Debug, Clone)]
pub struct AuthLayer {
    app: App,
    required: bool,
}

impl AuthLayer {
    /// Where it is not `required`, a caller without a credential is an administrator; agents need theirs anyway.
    pub fn new(app: App, required: bool) -> Self {
        Self { app, required }
    }

    async fn check(
        self,
        method: String,
        bearer: Option<String>,
    ) -> Result<Option<Principal>, Status> {
        let who = rule(&method).ok_or_else(|| Status::unimplemented("there is no such method"))?;
        let principal = match bearer {
            _ if who == Who::Anyone => return Ok(None),
            Some(bearer) => self.app.authenticate(&bearer).await?,
            None if self.required || who == Who::Agents => {
                return Err(status::unauthenticated("no credential was presented"));
            }
            None => anyone(),
        };
        admit(who, &principal)?;
        Ok(Some(principal))
    }
}

fn anyone() -> Principal {
    Principal::Token {
        id: TokenId::from_uuid(uuid::Uuid::nil()),
        name: "anyone".to_owned(),
        role: Role::Admin,
        project: None,
    }
}

/// The bearer text; an unreadable header is none.
fn bearer(headers: &http::HeaderMap) -> Option<String> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim().to_owned())
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth { layer: self.clone(), inner }
    }
}

/// See [`AuthLayer`].
#[derive(Debug, Clone)]
pub struct Auth<S> {
    layer: AuthLayer,
    inner: S,
}

impl<S, B, R> Service<http::Request<B>> for Auth<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: Default + Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        // The service that was polled ready is the one to call.
        let ready_one = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready_one);
        // Health, reflection and the probes over HTTP are open.
        let Some(method) = request.uri().path().strip_prefix(PREFIX) else {
            return inner.call(request).boxed();
        };
        let check = self.layer.clone().check(method.to_owned(), bearer(request.headers()));
        async move {
            match check.await {
                Ok(principal) => {
                    if let Some(principal) = principal {
                        request.extensions_mut().insert(principal);
                    }
                    inner.call(request).await
                }
                Err(status) => ready(Ok(status.into_http())).await,
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kiln_core::id::AgentId;
    use prost::Message;
    use tonic::Code;
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

    fn agent() -> Principal {
        Principal::Agent { id: AgentId::from_uuid(Uuid::nil()), name: "a".into() }
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

    /// Methods that a caller may call.
    fn allowed(principal: &Principal) -> BTreeSet<&'static str> {
        let admitted = METHODS.iter().filter(|(_, who)| admit(*who, principal).is_ok());
        admitted.map(|(name, _)| *name).collect()
    }

    #[test]
    fn agents_push_and_fetch_and_nothing_else() {
        let wanted = [
            "AgentService/EnrollAgent",
            "AgentService/Session",
            "ArtifactService/GetArtifact",
            "ArtifactService/PutArtifact",
            "LogService/PushLog",
        ];
        assert_eq!(allowed(&agent()), wanted.into());
    }

    #[test]
    fn each_role_may_do_what_the_one_before_may_but_an_enroller_only_enrols() {
        let [reader, submitter, admin] =
            [Role::Reader, Role::Submitter, Role::Admin].map(|role| allowed(&token(role, None)));
        assert!(reader.is_subset(&submitter) && submitter.is_subset(&admin));
        assert!(!reader.contains("BuildService/SubmitBuild"));
        assert!(!submitter.contains("AdminService/CreateToken"));
        assert_eq!(admin.len(), METHODS.len() - 2, "all but Session and PushLog");
        assert_eq!(allowed(&token(Role::Enroller, None)), ["AgentService/EnrollAgent"].into());
    }

    #[test]
    fn a_token_of_a_project_touches_only_its_project() {
        let bound = token(Role::Admin, Some(1));
        let methods = allowed(&bound);
        assert!(methods.iter().all(|method| !method.starts_with("AdminService/")));
        assert!(within(&bound, ProjectId::from_uuid(Uuid::from_u128(1))).is_ok());
        let refused = within(&bound, ProjectId::from_uuid(Uuid::from_u128(2))).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(within(&agent(), ProjectId::from_uuid(Uuid::from_u128(2))).is_ok());
    }

    #[test]
    fn the_bearer_is_read_whatever_its_case() {
        let headers =
            |text: &str| http::HeaderMap::from_iter([(AUTHORIZATION, text.parse().unwrap())]);
        assert_eq!(bearer(&headers("Bearer abc")).as_deref(), Some("abc"));
        assert_eq!(bearer(&headers("bearer  abc ")).as_deref(), Some("abc"));
        assert_eq!(bearer(&headers("Basic abc")), None);
        assert_eq!(bearer(&headers("abc")), None);
    }
}
