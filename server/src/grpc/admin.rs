//! AdminService.

mod audit;
mod authority;

use std::collections::HashMap;

use kiln_core::{
    Millis,
    spec::{Violation, is_name},
};
use kiln_proto::{convert, v1};
use tonic::{Request, Response, Status};

use super::{auth, refuse, view};
use crate::app::{
    App,
    views::{AgentView, Role, TokenRow},
};

/// Bytes of the note of a pause.
const MAX_NOTE: usize = 1_000;
/// Ten years: longer is a mistake.
const MAX_DURATION_MS: i64 = 10 * 366 * 24 * 3_600_000;

/// See [`v1::admin_service_server::AdminService`].
#[derive(Debug, Clone)]
pub struct Admin {
    app: App,
}

impl Admin {
    pub fn new(app: App) -> Self {
        Self { app }
    }

    fn agent(&self, view: AgentView) -> v1::Agent {
        view::agent(view, self.app.clock().now())
    }

    /// Tokens with the names of their projects.
    async fn name_projects(&self, rows: Vec<TokenRow>) -> Result<Vec<v1::Token>, Status> {
        let projects: HashMap<_, _> =
            self.app.projects().await?.into_iter().map(|row| (row.id, row.name)).collect();
        let name = |row: &TokenRow| row.project.and_then(|id| projects.get(&id).cloned());
        let named = rows.into_iter().map(|row| {
            let project = name(&row).unwrap_or_default();
            view::token(row, project)
        });
        Ok(named.collect())
    }
}

/// A duration; zero is none.
fn duration(value: i64) -> Result<Option<Millis>, Violation> {
    convert::unsigned("duration_ms", value)?;
    if value > MAX_DURATION_MS {
        return Err(Violation::new("duration_ms", "at most ten years"));
    }
    Ok(Some(value).filter(|value| *value > 0))
}

fn role(number: i32) -> Result<Role, Violation> {
    match v1::Role::try_from(number) {
        Ok(v1::Role::Reader) => Ok(Role::Reader),
        Ok(v1::Role::Submitter) => Ok(Role::Submitter),
        Ok(v1::Role::Admin) => Ok(Role::Admin),
        Ok(v1::Role::Enroller) => Ok(Role::Enroller),
        Ok(v1::Role::Unspecified) => Err(Violation::new("role", "must be set")),
        Err(_) => Err(Violation::new("role", format!("{number} is no value of this enum"))),
    }
}

#[tonic::async_trait]
impl v1::admin_service_server::AdminService for Admin {
    async fn list_agents(
        &self,
        _: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let now = self.app.clock().now();
        let agents = self.app.agents().await?.into_iter();
        let agents = agents.map(|view| view::agent(view, now)).collect();
        Ok(Response::new(v1::ListAgentsResponse { agents }))
    }

    async fn pause_agent(
        &self,
        request: Request<v1::PauseAgentRequest>,
    ) -> Result<Response<v1::PauseAgentResponse>, Status> {
        let app = self.app.by(&auth::caller(&request)?);
        let request = request.into_inner();
        let duration = duration(request.duration_ms).map_err(refuse)?;
        if request.note.len() > MAX_NOTE {
            return Err(refuse(Violation::new("note", format!("at most {MAX_NOTE} bytes"))));
        }
        let view = app.pause_agent(&request.agent, &request.note, duration).await?;
        Ok(Response::new(v1::PauseAgentResponse { agent: Some(self.agent(view)) }))
    }

    async fn resume_agent(
        &self,
        request: Request<v1::ResumeAgentRequest>,
    ) -> Result<Response<v1::ResumeAgentResponse>, Status> {
        let app = self.app.by(&auth::caller(&request)?);
        let view = app.resume_agent(&request.get_ref().agent).await?;
        Ok(Response::new(v1::ResumeAgentResponse { agent: Some(self.agent(view)) }))
    }

    async fn drain_agent(
        &self,
        request: Request<v1::DrainAgentRequest>,
    ) -> Result<Response<v1::DrainAgentResponse>, Status> {
        let app = self.app.by(&auth::caller(&request)?);
        let view = app.drain_agent(&request.get_ref().agent).await?;
        Ok(Response::new(v1::DrainAgentResponse { agent: Some(self.agent(view)) }))
    }

    async fn evict_agent(
        &self,
        request: Request<v1::EvictAgentRequest>,
    ) -> Result<Response<v1::EvictAgentResponse>, Status> {
        let app = self.app.by(&auth::caller(&request)?);
        let leases = app.evict_agent(&request.get_ref().agent).await?;
        let leases = i32::try_from(leases).unwrap_or(i32::MAX);
        Ok(Response::new(v1::EvictAgentResponse { leases }))
    }

    async fn get_queue(
        &self,
        _: Request<v1::GetQueueRequest>,
    ) -> Result<Response<v1::GetQueueResponse>, Status> {
        let (projects, oldest) = self.app.queue().await?;
        Ok(Response::new(v1::GetQueueResponse {
            projects: projects.into_iter().map(view::queue).collect(),
            oldest: oldest.into_iter().map(view::job).collect(),
        }))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let app = self.app.by(&auth::caller(&request)?);
        let request = request.into_inner();
        let role = role(request.role).map_err(refuse)?;
        let duration = duration(request.duration_ms).map_err(refuse)?;
        if !is_name(&request.name) {
            let message = "must be 1 to 100 characters of [A-Za-z0-9._-]";
            return Err(refuse(Violation::new("name", message)));
        }
        let project = Some(request.project.as_str()).filter(|name| !name.is_empty());
        let (row, secret) = app.create_token(&request.name, role, project, duration).await?;
        let token = Some(view::token(row, request.project.clone()));
        Ok(Response::new(v1::CreateTokenResponse { token, secret }))
    }

    async fn list_tokens(
        &self,
        _: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let tokens = self.name_projects(self.app.tokens().await?).await?;
        Ok(Response::new(v1::ListTokensResponse { tokens }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let app = self.app.by(&auth::caller(&request)?);
        let id = convert::id("token", &request.get_ref().token).map_err(refuse)?;
        app.revoke_token(id).await?;
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }

    async fn rotate_token(
        &self,
        request: Request<v1::RotateTokenRequest>,
    ) -> Result<Response<v1::RotateTokenResponse>, Status> {
        let app = self.app.by(&auth::caller(&request)?);
        let v1::RotateTokenRequest { token, grace_ms } = request.into_inner();
        let (row, secret) = app.rotate_token(&token, grace_ms).await?;
        let token = self.name_projects(vec![row]).await?.pop();
        Ok(Response::new(v1::RotateTokenResponse { token, secret }))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        let (filter, before, limit) = audit::read(request.into_inner())?;
        // One more than the page: it tells whether there is another.
        let mut rows = self.app.list_audit(&filter, before, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next_before = rows.last().filter(|_| more).map_or(0, |row| row.number);
        let records = rows.into_iter().map(audit::record).collect();
        Ok(Response::new(v1::ListAuditResponse { records, next_before }))
    }

    async fn list_authorities(
        &self,
        _: Request<v1::ListAuthoritiesRequest>,
    ) -> Result<Response<v1::ListAuthoritiesResponse>, Status> {
        let authorities = authority::write(self.app.authorities().await?);
        Ok(Response::new(v1::ListAuthoritiesResponse { authorities }))
    }

    async fn rotate_authority(
        &self,
        request: Request<v1::RotateAuthorityRequest>,
    ) -> Result<Response<v1::RotateAuthorityResponse>, Status> {
        let app = self.app.by(&auth::caller(&request)?);
        let rows = app.rotate_authority(request.get_ref().grace_ms).await?;
        Ok(Response::new(v1::RotateAuthorityResponse { authorities: authority::write(rows) }))
    }
}
