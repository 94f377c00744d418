//! The single calls. Those that can't do a thing twice are retried.

#[allow(clippy::wildcard_imports, reason = "all requests and responses, and nothing else")]
use crate::v1::*;
use crate::{Client, Error};

/// Methods that are retried: each reads, or sets what a repetition sets again.
macro_rules! retried {
    ($($(#[$doc:meta])* $service:ident.$name:ident($request:ty) -> $response:ty;)*) => {
        impl Client {
            $($(#[$doc])*
            pub async fn $name(&self, request: $request) -> Result<$response, Error> {
                self.retrying(|| {
                    let (mut service, request) = (self.$service(), request.clone());
                    async move { service.$name(request).await }
                })
                .await
            })*
        }
    };
}

/// Methods that are tried once: a repetition would do the thing again.
macro_rules! tried_once {
    ($($(#[$doc:meta])* $service:ident.$name:ident($request:ty) -> $response:ty;)*) => {
        impl Client {
            $($(#[$doc])*
            pub async fn $name(&self, request: $request) -> Result<$response, Error> {
                Ok(self.once(self.$service().$name(request)).await?)
            })*
        }
    };
}

retried! {
    /// One build with its jobs.
    builds.get_build(GetBuildRequest) -> GetBuildResponse;
    /// A page of builds.
    builds.list_builds(ListBuildsRequest) -> ListBuildsResponse;
    /// Cancels a build or one of its jobs.
    builds.cancel_build(CancelBuildRequest) -> CancelBuildResponse;
    /// Why a job waits, or why it failed.
    builds.explain_job(ExplainJobRequest) -> ExplainJobResponse;
    /// One project.
    projects.get_project(GetProjectRequest) -> GetProjectResponse;
    /// All projects.
    projects.list_projects(ListProjectsRequest) -> ListProjectsResponse;
    /// Changes weight, limit or pause.
    projects.update_project(UpdateProjectRequest) -> UpdateProjectResponse;
    /// Sets a secret.
    secrets.set_secret(SetSecretRequest) -> SetSecretResponse;
    /// The secrets of a project, without their values.
    secrets.list_secrets(ListSecretsRequest) -> ListSecretsResponse;
    /// Encrypts all values with the server's first key.
    secrets.reencrypt_secrets(ReencryptSecretsRequest) -> ReencryptSecretsResponse;
    /// A range of a log.
    log_service.read_log(ReadLogRequest) -> ReadLogResponse;
    /// The artifacts of a build or of a job.
    artifact_service.list_artifacts(ListArtifactsRequest) -> ListArtifactsResponse;
    /// Turns an enrolment token into an identity; the same digest gets the same answer.
    agents.enroll_agent(EnrollAgentRequest) -> EnrollAgentResponse;
    /// All agents.
    admin.list_agents(ListAgentsRequest) -> ListAgentsResponse;
    /// Gives an agent no new jobs.
    admin.pause_agent(PauseAgentRequest) -> PauseAgentResponse;
    /// Ends a pause or a drain.
    admin.resume_agent(ResumeAgentRequest) -> ResumeAgentResponse;
    /// Lets an agent finish, then stop.
    admin.drain_agent(DrainAgentRequest) -> DrainAgentResponse;
    /// What waits.
    admin.get_queue(GetQueueRequest) -> GetQueueResponse;
    /// All tokens.
    admin.list_tokens(ListTokensRequest) -> ListTokensResponse;
    /// The authorities that are trusted.
    admin.list_authorities(ListAuthoritiesRequest) -> ListAuthoritiesResponse;
    /// What was done by whom.
    admin.list_audit(ListAuditRequest) -> ListAuditResponse;
}

tried_once! {
    /// Makes a project.
    projects.create_project(CreateProjectRequest) -> CreateProjectResponse;
    /// Removes an agent; the count in the answer is of this very call.
    admin.evict_agent(EvictAgentRequest) -> EvictAgentResponse;
    /// Makes a token.
    admin.create_token(CreateTokenRequest) -> CreateTokenResponse;
    /// Deletes a secret.
    secrets.delete_secret(DeleteSecretRequest) -> DeleteSecretResponse;
    /// Makes a token void.
    admin.revoke_token(RevokeTokenRequest) -> RevokeTokenResponse;
    /// Makes a new authority.
    admin.rotate_authority(RotateAuthorityRequest) -> RotateAuthorityResponse;
    /// Gives a token a new secret.
    admin.rotate_token(RotateTokenRequest) -> RotateTokenResponse;
}

impl Client {
    /// Submits a build. A request without a key gets a random one, so that a repetition names the same build.
    pub async fn submit(
        &self,
        mut request: SubmitBuildRequest,
    ) -> Result<SubmitBuildResponse, Error> {
        if request.key.is_empty() && !request.validate_only {
            request.key = random_key()?;
        }
        self.retrying(|| {
            let (mut service, request) = (self.builds(), request.clone());
            async move { service.submit_build(request).await }
        })
        .await
    }

    /// Opens new rounds. Targets without a round get the one that is current now, and no target means each job that ended
    /// without success now: so a repetition opens none twice.
    pub async fn retry_build(
        &self,
        mut request: RetryBuildRequest,
    ) -> Result<RetryBuildResponse, Error> {
        if request.targets.is_empty() || request.targets.iter().any(|target| target.round == 0) {
            let seen = self.get_build(GetBuildRequest { build: request.build.clone() }).await?;
            request.targets = targets(&request.targets, &seen.jobs);
        }
        self.retrying(|| {
            let (mut service, request) = (self.builds(), request.clone());
            async move { service.retry_build(request).await }
        })
        .await
    }
}

fn targets(asked: &[RetryTarget], jobs: &[Job]) -> Vec<RetryTarget> {
    let unsuccessful = |job: &&Job| matches!(job.state(), JobState::Failed | JobState::Cancelled);
    if asked.is_empty() {
        let jobs = jobs.iter().filter(unsuccessful);
        return jobs.map(|job| RetryTarget { job: job.id.clone(), round: job.round }).collect();
    }
    let round = |id: &str| jobs.iter().find(|job| job.id == id).map_or(0, |job| job.round);
    let fill = |target: &RetryTarget| match target.round {
        0 => RetryTarget { job: target.job.clone(), round: round(&target.job) },
        _ => target.clone(),
    };
    asked.iter().map(fill).collect()
}

fn random_key() -> Result<String, Error> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::local(
            tonic::Code::Internal,
            format!("this machine gives no random numbers: {error}"),
        )
    })?;
    Ok(uuid::Uuid::from_bytes(bytes).simple().to_string())
}
