//! Who gets in, and how far.

use kiln_proto::v1::{
    self, Role, admin_service_client::AdminServiceClient, agent_service_client::AgentServiceClient,
    build_service_client::BuildServiceClient, project_service_client::ProjectServiceClient,
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

    let missing = [
        builds.submit_build(submission("theirs")).await.err(),
        builds.get_build(v1::GetBuildRequest { build: theirs.clone() }).await.err(),
        builds.watch_build(v1::WatchBuildRequest { build: theirs.clone(), after: 0 }).await.err(),
        builds
            .cancel_build(v1::CancelBuildRequest { build: theirs.clone(), ..Default::default() })
            .await
            .err(),
        builds.retry_build(v1::RetryBuildRequest { build: theirs, targets: vec![] }).await.err(),
    ];
    for status in missing {
        assert_eq!(status.unwrap().code(), Code::NotFound);
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

/// The newest records: actor, action, name of the object, whether it changed anything.
async fn audit(world: &World) -> Vec<(String, String, String, bool)> {
    let answer = world.admins().list_audit(v1::ListAuditRequest::default()).await.unwrap();
    let records = answer.into_inner().records;
    let numbers: Vec<i64> = records.iter().map(|record| record.number).collect();
    let last = i64::try_from(records.len()).unwrap();
    assert_eq!(numbers, (1..=last).rev().collect::<Vec<_>>(), "without gaps, the newest first");
    for record in &records {
        let from = if record.actor_kind == "server" { "" } else { "127.0.0.1" };
        assert_eq!(record.peer, from, "{record:?}");
    }
    let short = |r: v1::AuditRecord| (r.actor_name, r.action, r.object_name, r.changed);
    records.into_iter().rev().map(short).collect()
}

#[tokio::test]
async fn each_administrative_act_is_recorded_with_who_did_it() {
    let world = World::start().await;
    let agent = world.agent("box").await;
    let anna = world.token("anna", Role::Admin, "").await;
    let mut admin = AdminServiceClient::new(world.client(&anna));
    let agent_of = || "box".to_owned();
    let pause = v1::PauseAgentRequest { agent: agent_of(), note: "disk".into(), duration_ms: 0 };
    admin.pause_agent(pause).await.unwrap();
    admin.resume_agent(v1::ResumeAgentRequest { agent: agent_of() }).await.unwrap();
    admin.drain_agent(v1::DrainAgentRequest { agent: agent_of() }).await.unwrap();
    admin.evict_agent(v1::EvictAgentRequest { agent: agent_of() }).await.unwrap();
    let mut projects = ProjectServiceClient::new(world.client(&anna));
    let create = v1::CreateProjectRequest { name: "web".into(), ..Default::default() };
    projects.create_project(create).await.unwrap();
    let update =
        v1::UpdateProjectRequest { name: "web".into(), weight: Some(3), ..Default::default() };
    projects.update_project(update).await.unwrap();

    let ci = world.token("ci", Role::Submitter, "web").await;
    let mut builds = BuildServiceClient::new(world.client(&ci));
    let build =
        builds.submit_build(submission("web")).await.unwrap().into_inner().build.unwrap().id;
    let cancel = v1::CancelBuildRequest { build: build.clone(), ..Default::default() };
    builds.cancel_build(cancel.clone()).await.unwrap();
    builds.cancel_build(cancel).await.unwrap();
    builds.retry_build(v1::RetryBuildRequest { build, targets: vec![] }).await.unwrap();
    // Refused, or not an act: nothing is recorded.
    admin.evict_agent(v1::EvictAgentRequest { agent: agent_of() }).await.unwrap_err();
    builds.list_builds(v1::ListBuildsRequest::default()).await.unwrap();

    let rotate = v1::RotateTokenRequest { token: "ci".into(), grace_ms: 0 };
    let rotated = admin.rotate_token(rotate).await.unwrap().into_inner();
    let token = rotated.token.unwrap();
    assert_eq!((token.name.as_str(), token.project.as_str()), ("ci", "web"));
    admin.revoke_token(v1::RevokeTokenRequest { token: token.id }).await.unwrap();

    let found = audit(&world).await;
    let found: Vec<_> = found
        .iter()
        .map(|(who, action, on, changed)| (&**who, &**action, &**on, *changed))
        .collect();
    assert_eq!(
        found,
        [
            ("server", "token.create", "admin", true),
            ("admin", "token.create", "enrol-box", true),
            ("enrol-box", "agent.enrol", "box", true),
            ("admin", "token.create", "anna", true),
            ("anna", "agent.pause", "box", true),
            ("anna", "agent.resume", "box", true),
            ("anna", "agent.drain", "box", true),
            ("anna", "agent.evict", "box", true),
            ("anna", "project.create", "web", true),
            ("anna", "project.update", "web", true),
            ("admin", "token.create", "ci", true),
            ("ci", "build.cancel", "", true),
            ("ci", "build.cancel", "", false),
            ("ci", "build.retry", "", true),
            ("anna", "token.rotate", "ci", true),
            ("anna", "token.revoke", "ci", true),
        ]
    );
    let everything = world.admins().list_audit(v1::ListAuditRequest::default()).await.unwrap();
    let everything = format!("{:?}", everything.into_inner());
    for secret in [&world.admin, &anna, &ci, &agent.secret, &rotated.secret] {
        // kiln_ID_RANDOM, where RANDOM may have more of them, or agt_ID.RANDOM.
        let random = secret.rsplit('.').next().unwrap().splitn(3, '_').last().unwrap();
        assert!(random.len() > 40, "{}", random.len());
        assert!(!everything.contains(random), "a secret is in the audit log");
    }
}

#[tokio::test]
async fn the_audit_log_has_pages_and_names_a_wrong_filter() {
    let world = World::start().await;
    for n in 0..5 {
        world.token(&format!("t{n}"), Role::Reader, "").await;
    }
    let mut request =
        v1::ListAuditRequest { action: "token".into(), page_size: 4, ..Default::default() };
    let first = world.admins().list_audit(request.clone()).await.unwrap().into_inner();
    assert_eq!((first.records.len(), first.next_before), (4, 3));
    request.before = first.next_before;
    let last = world.admins().list_audit(request).await.unwrap().into_inner();
    assert_eq!((last.records.len(), last.next_before), (2, 0));
    let wrong = v1::ListAuditRequest { action: "Token%".into(), from_ms: -1, ..Default::default() };
    let status = world.admins().list_audit(wrong).await.unwrap_err();
    let fields = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(fields.iter().map(|v| v.field.as_str()).collect::<Vec<_>>(), ["from_ms", "action"]);
}

#[tokio::test]
async fn a_rotated_token_takes_its_old_secret_for_the_grace_time_only() {
    let world = World::start().await;
    let old = world.token("ci", Role::Reader, "").await;
    let knocks = async |secret: &str| {
        let mut builds = BuildServiceClient::new(world.client(secret));
        builds.list_builds(v1::ListBuildsRequest::default()).await.map(drop).map_err(|s| s.code())
    };
    let rotate = async |grace_ms| {
        let request = v1::RotateTokenRequest { token: "ci".into(), grace_ms };
        world.admins().rotate_token(request).await.map(|answer| answer.into_inner().secret)
    };
    let new = rotate(3_600_000).await.unwrap();
    assert_eq!((knocks(&old).await, knocks(&new).await), (Ok(()), Ok(())));
    let newest = rotate(0).await.unwrap();
    for void in [&old, &new] {
        assert_eq!(knocks(void).await, Err(Code::Unauthenticated));
    }
    assert_eq!(knocks(&newest).await, Ok(()));
    assert_eq!(rotate(-1).await.unwrap_err().code(), Code::InvalidArgument);
}
