//! Too much of something: who is too much is told so and when to come back, and nobody else feels it.

use std::{io::Read, net::TcpStream, time::Duration};

use kiln_proto::v1::{
    self, Role, agent_service_client::AgentServiceClient, build_service_client::BuildServiceClient,
};
use kiln_server::config::Limits;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::world::{World, shell};

const PATIENCE: Duration = Duration::from_mins(1);

async fn limited(limits: Limits) -> World {
    World::with(|config| kiln_server::Config { limits, sweep_ms: 20, ..config }).await
}

/// Which limit it was, and that it says when to come back.
fn limit(status: &Status) -> String {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(wait > Duration::ZERO && wait <= Duration::from_mins(1), "{wait:?}");
    status.get_details_error_info().unwrap().metadata["limit"].clone()
}

async fn list(world: &World, secret: &str) -> Result<(), Status> {
    let mut builds = BuildServiceClient::new(world.client(secret));
    builds.list_builds(v1::ListBuildsRequest::default()).await.map(drop)
}

#[tokio::test]
async fn a_token_that_calls_too_often_is_told_to_wait_and_others_are_not() {
    let limits = Limits { calls_per_second: 1, calls_burst: 3, ..Limits::default() };
    let world = limited(limits).await;
    let busy = world.token("busy", Role::Reader, "").await;
    let quiet = world.token("quiet", Role::Reader, "").await;
    let mut refused = None;
    // At one a second, more than 60 calls within the patience are too many, however slow the machine.
    for _ in 0..100 {
        refused = refused.or(list(&world, &busy).await.err());
    }
    assert_eq!(limit(&refused.unwrap()), "limits.calls_per_second");
    list(&world, &quiet).await.unwrap();
}

#[tokio::test]
async fn submissions_have_a_limit_of_their_own() {
    let world = limited(Limits { submissions_per_minute: 1, ..Limits::default() }).await;
    let secret = world.token("ci", Role::Submitter, "").await;
    let mut builds = BuildServiceClient::new(world.client(&secret));
    let submission = || v1::SubmitBuildRequest {
        spec: Some(v1::BuildSpec { jobs: vec![shell("a")], ..Default::default() }),
        ..Default::default()
    };
    builds.submit_build(submission()).await.unwrap();
    let refused = builds.submit_build(submission()).await.unwrap_err();
    assert_eq!(limit(&refused), "limits.submissions_per_minute");
    let all = builds.list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.builds.len(), 1, "what was refused is not there");
}

#[tokio::test]
async fn an_address_that_guesses_is_barred_and_who_was_let_in_there_is_not() {
    let world = limited(Limits { failures_per_minute: 3, ..Limits::default() }).await;
    let known = world.token("known", Role::Reader, "").await;
    let late = world.token("late", Role::Reader, "").await;
    list(&world, &known).await.unwrap();
    let guess = |n: u32| format!("kiln_{n:032x}_{}", "x".repeat(43));
    assert_eq!(list(&world, &guess(1)).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(list(&world, "").await.unwrap_err().code(), Code::Unauthenticated);
    // A credential in the message counts as well.
    let mut agents = AgentServiceClient::new(world.client(""));
    let request = v1::EnrollAgentRequest {
        token: guess(2),
        name: "box".into(),
        credential_sha256: vec![7; 32],
        ..Default::default()
    };
    let status = agents.enroll_agent(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(limit(&list(&world, &guess(3)).await.unwrap_err()), "limits.failures_per_minute");
    let status = agents.enroll_agent(request).await.unwrap_err();
    assert_eq!(limit(&status), "limits.failures_per_minute");
    list(&world, &known).await.unwrap();
    assert_eq!(limit(&list(&world, &late).await.unwrap_err()), "limits.failures_per_minute");
}

#[tokio::test]
async fn streams_are_counted_while_they_are_open() {
    let world = limited(Limits { streams: 2, ..Limits::default() }).await;
    let build = world.submit(vec![shell("a")]).await.id;
    let first = world.watch(&build, 0).await;
    let _second = world.watch(&build, 0).await;
    let request = v1::WatchBuildRequest { build: build.clone(), after: 0 };
    let refused = world.builds().watch_build(request.clone()).await.unwrap_err();
    assert_eq!(limit(&refused), "limits.streams");
    drop(first);
    let again = async {
        while world.builds().watch_build(request.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the place of one that ended is free");
}

#[tokio::test]
async fn the_stream_of_a_token_that_was_revoked_ends() {
    let world = limited(Limits::default()).await;
    let build = world.submit(vec![shell("a")]).await.id;
    let secret = world.token("gone", Role::Reader, "").await;
    let mut builds = BuildServiceClient::new(world.client(&secret));
    let request = v1::WatchBuildRequest { build: build.clone(), after: 0 };
    let mut stream = builds.watch_build(request).await.unwrap().into_inner();
    let mut other = world.watch(&build, 0).await;
    stream.message().await.unwrap().unwrap();
    let tokens = world.admins().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner();
    let token = tokens.tokens.into_iter().find(|token| token.name == "gone").unwrap().id;
    world.admins().revoke_token(v1::RevokeTokenRequest { token }).await.unwrap();
    let ended = async {
        loop {
            if let Err(status) = stream.message().await {
                return status;
            }
        }
    };
    let status = tokio::time::timeout(PATIENCE, ended).await.expect("the stream ends");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(other.message().await.unwrap().is_some(), "that of another token goes on");
}

/// Whether the server has closed it by now, or does within the patience.
fn is_closed(mut socket: &TcpStream) -> bool {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut byte = [0; 64];
    loop {
        match socket.read(&mut byte) {
            Ok(0) => return true,
            // Its HTTP/2 settings.
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_leaves_those_alone_that_work() {
    let limits = Limits { connections_per_peer: 8, first_call_ms: 500, ..Limits::default() };
    let world = limited(limits).await;
    list(&world, &world.admin).await.unwrap();
    let address = world.address;
    let flood = tokio::task::spawn_blocking(move || {
        let idle: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
        // Half a call is none.
        let mut slow = TcpStream::connect(address).unwrap();
        let _ = std::io::Write::write_all(&mut slow, b"GET /healthz HTTP/1.1\r\nHost: ");
        idle.iter().chain([&slow]).all(is_closed)
    });
    list(&world, &world.admin).await.unwrap();
    assert!(flood.await.unwrap(), "each of them was turned away, or ended without a call");
    // Their places are free again, and the connection that carries calls was never touched.
    list(&world, &world.admin).await.unwrap();
    let fresh = tokio::task::spawn_blocking(move || {
        let mut socket = TcpStream::connect(address).unwrap();
        let ask = b"GET /healthz HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n";
        std::io::Write::write_all(&mut socket, ask).unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).map(|_| text)
    });
    let text = fresh.await.unwrap().unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

#[tokio::test]
async fn headers_have_a_limit() {
    let world = World::start().await;
    let status = list(&world, &"x".repeat(64 << 10)).await.unwrap_err();
    assert_ne!(status.code(), Code::Ok);
    list(&world, &world.admin).await.unwrap();
}
