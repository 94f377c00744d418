//! One call of each method, as far as it tells whether it is let in.

use kiln_proto::v1::{
    self, admin_service_client::AdminServiceClient, agent_service_client::AgentServiceClient,
    artifact_service_client::ArtifactServiceClient, build_service_client::BuildServiceClient,
    log_service_client::LogServiceClient, project_service_client::ProjectServiceClient,
    secret_service_client::SecretServiceClient,
};
use sha2::{Digest, Sha256};
use tonic::{Response, Status, Streaming};

use super::cast::{Cast, Things, rand};
use crate::world::shell;

type Answer = Result<(), Status>;

/// Calls a method as this caller, on these things.
pub(super) async fn call(
    cast: &Cast,
    method: &str,
    caller: &str,
    secret: &str,
    things: &Things,
) -> Answer {
    let client = cast.world.client(secret);
    match method.split_once('/').unwrap() {
        ("AdminService", name) => admin(AdminServiceClient::new(client), name, things).await,
        ("AgentService", name) => agent(AgentServiceClient::new(client), name, secret).await,
        ("ArtifactService", name) => {
            artifact(ArtifactServiceClient::new(client), name, caller, things).await
        }
        ("BuildService", name) => build(BuildServiceClient::new(client), name, things).await,
        ("LogService", name) => log(LogServiceClient::new(client), name, things).await,
        ("ProjectService", name) => project(ProjectServiceClient::new(client), name, things).await,
        ("SecretService", name) => secrets(SecretServiceClient::new(client), name, things).await,
        _ => panic!("no call is written for {method}"),
    }
}

type Client = crate::world::Client;

async fn admin(mut client: AdminServiceClient<Client>, name: &str, things: &Things) -> Answer {
    let agent = things.agent.clone();
    match name {
        "CreateToken" => {
            let name = format!("made-{}", rand());
            let role = v1::Role::Reader.into();
            let request = v1::CreateTokenRequest { name, role, ..Default::default() };
            client.create_token(request).await.map(drop)
        }
        "DrainAgent" => client.drain_agent(v1::DrainAgentRequest { agent }).await.map(drop),
        "EvictAgent" => client.evict_agent(v1::EvictAgentRequest { agent }).await.map(drop),
        "GetQueue" => client.get_queue(v1::GetQueueRequest {}).await.map(drop),
        "ListAgents" => client.list_agents(v1::ListAgentsRequest {}).await.map(drop),
        "ListAudit" => client.list_audit(v1::ListAuditRequest::default()).await.map(drop),
        "ListAuthorities" => client.list_authorities(v1::ListAuthoritiesRequest {}).await.map(drop),
        "RotateAuthority" => {
            client.rotate_authority(v1::RotateAuthorityRequest { grace_ms: 0 }).await.map(drop)
        }
        "ListTokens" => client.list_tokens(v1::ListTokensRequest {}).await.map(drop),
        "PauseAgent" => {
            let request = v1::PauseAgentRequest { agent, ..Default::default() };
            client.pause_agent(request).await.map(drop)
        }
        "ResumeAgent" => client.resume_agent(v1::ResumeAgentRequest { agent }).await.map(drop),
        "RevokeToken" => {
            let token = things.token.clone();
            client.revoke_token(v1::RevokeTokenRequest { token }).await.map(drop)
        }
        "RotateToken" => {
            let token = things.token.clone();
            client.rotate_token(v1::RotateTokenRequest { token, grace_ms: 0 }).await.map(drop)
        }
        _ => panic!("no call is written for {name}"),
    }
}

async fn agent(mut client: AgentServiceClient<Client>, name: &str, secret: &str) -> Answer {
    match name {
        "CertifyAgent" => {
            let request = v1::CertifyAgentRequest { certificate_request: vec![1] };
            client.certify_agent(request).await.map(drop)
        }
        "EnrollAgent" => {
            let digest = Sha256::digest(secret);
            let request = v1::EnrollAgentRequest {
                token: secret.into(),
                name: format!("enrolled-{}", digest[0]),
                credential_sha256: digest.to_vec(),
                ..Default::default()
            };
            client.enroll_agent(request).await.map(drop)
        }
        "Session" => {
            let frame = v1::session_request::Frame::Heartbeat(v1::Heartbeat::default());
            let frames = tokio_stream::iter([v1::SessionRequest { frame: Some(frame) }]);
            first(client.session(frames).await).await
        }
        _ => panic!("no call is written for {name}"),
    }
}

/// What a stream says first.
async fn first<T>(answer: Result<Response<Streaming<T>>, Status>) -> Answer {
    answer?.into_inner().message().await.map(drop)
}

async fn artifact(
    mut client: ArtifactServiceClient<Client>,
    name: &str,
    caller: &str,
    things: &Things,
) -> Answer {
    let is_agent = ["agent", "evicted"].contains(&caller);
    match name {
        "GetArtifact" => {
            use v1::get_artifact_request::What;
            let named = v1::ArtifactRef { job: things.done.clone(), name: things.artifact.clone() };
            let what =
                if is_agent { What::Sha256(things.source.clone()) } else { What::Artifact(named) };
            let request = v1::GetArtifactRequest { what: Some(what), offset: 0 };
            first(client.get_artifact(request).await).await
        }
        "ListArtifacts" => {
            let request =
                v1::ListArtifactsRequest { build: things.build.clone(), ..Default::default() };
            client.list_artifacts(request).await.map(drop)
        }
        "PutArtifact" => {
            let open = v1::PutArtifactOpen {
                sha256: "0".repeat(64),
                size: 1,
                lease: if is_agent { things.lease.clone() } else { String::new() },
            };
            let frame = Some(v1::put_artifact_request::Frame::Open(open));
            let frames = tokio_stream::iter([v1::PutArtifactRequest { frame }]);
            first(client.put_artifact(frames).await).await
        }
        _ => panic!("no call is written for {name}"),
    }
}

async fn build(mut client: BuildServiceClient<Client>, name: &str, things: &Things) -> Answer {
    let build = things.build.clone();
    match name {
        "CancelBuild" => {
            let request = v1::CancelBuildRequest { build, ..Default::default() };
            client.cancel_build(request).await.map(drop)
        }
        "ExplainJob" => {
            let job = things.done.clone();
            client.explain_job(v1::ExplainJobRequest { job }).await.map(drop)
        }
        "GetBuild" => client.get_build(v1::GetBuildRequest { build }).await.map(drop),
        "ListBuilds" => {
            let project = things.project.clone();
            let request = v1::ListBuildsRequest { project, ..Default::default() };
            client.list_builds(request).await.map(drop)
        }
        "RetryBuild" => {
            let request = v1::RetryBuildRequest { build, targets: vec![] };
            client.retry_build(request).await.map(drop)
        }
        "SubmitBuild" => {
            let spec = v1::BuildSpec { jobs: vec![shell("a")], ..Default::default() };
            let project = things.project.clone();
            let request =
                v1::SubmitBuildRequest { project, spec: Some(spec), ..Default::default() };
            client.submit_build(request).await.map(drop)
        }
        "WatchBuild" => {
            first(client.watch_build(v1::WatchBuildRequest { build, after: 0 }).await).await
        }
        _ => panic!("no call is written for {name}"),
    }
}

async fn log(mut client: LogServiceClient<Client>, name: &str, things: &Things) -> Answer {
    let job = things.done.clone();
    match name {
        "FollowLog" => {
            let request = v1::FollowLogRequest { job, ..Default::default() };
            client.follow_log(request).await.map(drop)
        }
        "PushLog" => {
            let open = v1::PushLogOpen { lease: things.lease.clone(), stream: "main".into() };
            let frame = Some(v1::push_log_request::Frame::Open(open));
            let frames = tokio_stream::iter([v1::PushLogRequest { frame }]);
            first(client.push_log(frames).await).await
        }
        "ReadLog" => {
            let request = v1::ReadLogRequest { job, ..Default::default() };
            client.read_log(request).await.map(drop)
        }
        _ => panic!("no call is written for {name}"),
    }
}

async fn project(mut client: ProjectServiceClient<Client>, name: &str, things: &Things) -> Answer {
    let name_of = things.project.clone();
    match name {
        "CreateProject" => {
            let name = format!("made-{}", rand());
            let request = v1::CreateProjectRequest { name, ..Default::default() };
            client.create_project(request).await.map(drop)
        }
        "GetProject" => client.get_project(v1::GetProjectRequest { name: name_of }).await.map(drop),
        "ListProjects" => client.list_projects(v1::ListProjectsRequest {}).await.map(drop),
        "UpdateProject" => {
            let request =
                v1::UpdateProjectRequest { name: name_of, weight: Some(7), ..Default::default() };
            client.update_project(request).await.map(drop)
        }
        _ => panic!("no call is written for {name}"),
    }
}

async fn secrets(mut client: SecretServiceClient<Client>, name: &str, things: &Things) -> Answer {
    let (project, secret) = (things.project.clone(), things.secret.clone());
    match name {
        "DeleteSecret" => {
            let request = v1::DeleteSecretRequest { project, name: secret };
            client.delete_secret(request).await.map(drop)
        }
        "ListSecrets" => client.list_secrets(v1::ListSecretsRequest { project }).await.map(drop),
        "ReencryptSecrets" => {
            client.reencrypt_secrets(v1::ReencryptSecretsRequest {}).await.map(drop)
        }
        "SetSecret" => {
            let value = b"hush".to_vec();
            let request = v1::SetSecretRequest { project, name: "PROBE".into(), value };
            client.set_secret(request).await.map(drop)
        }
        _ => panic!("no call is written for {name}"),
    }
}
