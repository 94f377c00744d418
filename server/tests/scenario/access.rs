//! Who gets in, and how far.

use kiln_proto::v1::{
    self, Role, agent_service_client::AgentServiceClient, build_service_client::BuildServiceClient,
    project_service_client::ProjectServiceClient,
};
use tonic::Code;
use tonic_types::StatusExt;

use crate::world::{World, shell};

fn submission(project: &str) -> v1::SubmitBuildRequest {
    v1::SubmitBuildRequest {
        project: project.into(),
        spec: Some(v1::BuildSpec { jobs: vec![shell("a")], ..Default::default() }),
        ..Default::default()
    }
}

#[tokio::test]
async fn without_a_token_only_the_open_methods_answer() {
    let world = World::start().await;
    for secret in ["", "kiln_x", "kiln_00000000000000000000000000000007_x", "agt_7.7"] {
        let mut builds = BuildServiceClient::new(world.client(secret));
        let status = builds.list_builds(v1::ListBuildsRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{secret:?}: {status:?}");
        assert_eq!(status.get_details_error_info().unwrap().domain, "kiln.dev");
    }
    let mut agents = AgentServiceClient::new(world.client(""));
    let request = v1::EnrollAgentRequest { token: "x".into(), ..Default::default() };
    let status = agents.enroll_agent(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "its credential is in the message");
}

#[tokio::test]
async fn a_role_ends_where_the_next_begins() {
    let world = World::start().await;
    let reader = world.token("reader", Role::Reader, "").await;
    let mut builds = BuildServiceClient::new(world.client(&reader));
    builds.list_builds(v1::ListBuildsRequest::default()).await.unwrap();
    let status = builds.submit_build(submission("")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.get_details_error_info().unwrap().metadata["hint"].contains("submitter"));

    let agent = world.agent("worker").await;
    let mut builds = BuildServiceClient::new(world.client(&agent.secret));
    let status = builds.submit_build(submission("")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_token_of_a_project_sees_and_touches_only_that() {
    let world = World::start().await;
    for name in ["mine", "theirs"] {
        let request = v1::CreateProjectRequest { name: name.into(), ..Default::default() };
        world.projects().create_project(request).await.unwrap();
    }
    let theirs = world.builds().submit_build(submission("theirs")).await.unwrap();
    let theirs = theirs.into_inner().build.unwrap().id;
    let secret = world.token("mine", Role::Submitter, "mine").await;
    let mut builds = BuildServiceClient::new(world.client(&secret));
    let mine = builds.submit_build(submission("")).await.unwrap().into_inner().build.unwrap();
    assert_eq!((mine.project.as_str(), mine.submitter.as_str()), ("mine", "mine"));

    let denied = [
        builds.submit_build(submission("theirs")).await.err(),
        builds.get_build(v1::GetBuildRequest { build: theirs.clone() }).await.err(),
        builds.watch_build(v1::WatchBuildRequest { build: theirs.clone(), after: 0 }).await.err(),
        builds
            .cancel_build(v1::CancelBuildRequest { build: theirs.clone(), ..Default::default() })
            .await
            .err(),
        builds.retry_build(v1::RetryBuildRequest { build: theirs, targets: vec![] }).await.err(),
    ];
    for status in denied {
        assert_eq!(status.unwrap().code(), Code::PermissionDenied);
    }
    let listed = builds.list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.builds.iter().map(|build| &build.id).collect::<Vec<_>>(), [&mine.id]);
    let mut projects = ProjectServiceClient::new(world.client(&secret));
    let seen = projects.list_projects(v1::ListProjectsRequest {}).await.unwrap().into_inner();
    assert_eq!(seen.projects.len(), 1);
}

#[tokio::test]
async fn a_revoked_token_is_void() {
    let world = World::start().await;
    let secret = world.token("gone", Role::Reader, "").await;
    let tokens = world.admins().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner();
    let token = tokens.tokens.into_iter().find(|token| token.name == "gone").unwrap().id;
    world.admins().revoke_token(v1::RevokeTokenRequest { token }).await.unwrap();
    let mut builds = BuildServiceClient::new(world.client(&secret));
    let status = builds.list_builds(v1::ListBuildsRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn without_auth_people_need_no_token_and_agents_still_do() {
    let world = World::with(|config| kiln_server::Config { auth: false, ..config }).await;
    let mut builds = BuildServiceClient::new(world.client(""));
    builds.submit_build(submission("")).await.unwrap();
    let mut agents = AgentServiceClient::new(world.client(""));
    let frames = tokio_stream::iter(Vec::<v1::SessionRequest>::new());
    let status = agents.session(frames).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}
