//! The server's own life: probes, a second one on the same folder, the end.

use std::{sync::Arc, time::Duration};

use kiln_proto::v1;
use kiln_server::{
    Base, Config, config, serve, serve_with,
    store::{memory::Memory, sql},
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::world::{World, get, shell};

#[tokio::test]
async fn probes_answer_over_plain_http() {
    let world = World::start().await;
    assert!(world.get("/healthz", "").await.starts_with("HTTP/1.1 200"));
    assert!(world.get("/readyz", "").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_server_that_is_to_end_is_ready_no_more_but_serves_until_it_is_drained() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let drain = |config| Config { drain_ms: 3_000, ..config };
    let mut world = World::with(drain).await;
    let mut health = HealthClient::new(world.client(""));
    let request = HealthCheckRequest { service: String::new() };
    assert_eq!(health.check(request.clone()).await.unwrap().into_inner().status, 1);
    let build = world.submit(vec![shell("a")]).await;
    let mut watch = world.watch(&build.id, build.last_event).await;
    let told = std::time::Instant::now();
    world.shutdown.cancel();
    let answer = world.get("/readyz", "").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains(r#""ready":false"#) && answer.contains(r#""draining":true"#));
    assert!(answer.contains(r#""database":"ok","schema":"memory""#), "{answer}");
    assert!(world.get("/healthz", "").await.starts_with("HTTP/1.1 200"));
    while health.check(request.clone()).await.unwrap().into_inner().status != 2 {}
    // Who has not looked yet is served as before.
    world.submit(vec![shell("b")]).await;
    let status = watch.message().await.expect_err("nothing happens to the build");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(told.elapsed() >= Duration::from_secs(3), "{:?}", told.elapsed());
    world.running.take().unwrap().wait().await.unwrap();
}

/// The first answer of `/readyz` that says no: what was found a moment ago is good enough.
async fn refusal(address: std::net::SocketAddr) -> String {
    loop {
        let answer = get(address, "/readyz", "").await;
        if answer.starts_with("HTTP/1.1 503") {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_server_without_its_storage_is_not_ready() {
    let home = tempfile::tempdir().unwrap();
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: home.path().to_owned(),
        ..Config::default()
    };
    let stop = CancellationToken::new();
    let server = serve(config, stop.clone()).await.unwrap();
    let answer = get(server.addr, "/readyz", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains(r#""storage":"ok""#) && answer.contains(r#""schema":"m2"#), "{answer}");
    std::fs::remove_dir_all(home.path().join("artifacts")).unwrap();
    let answer = refusal(server.addr).await;
    assert!(answer.contains(r#""database":"ok""#), "{answer}");
    assert!(answer.contains(r#""storage":"failed""#), "{answer}");
    stop.cancel();
    server.wait().await.unwrap();
}

#[tokio::test]
async fn a_server_without_its_database_is_not_ready() {
    let home = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", home.path().join("kiln.db").display());
    let sql = sql::connect(&url, &sql::Options::default()).await.unwrap();
    sql.migrate().await.unwrap();
    let base = Base::local(Arc::new(sql.clone()));
    let open = |config| Config { metrics: config::Metrics { open: true }, ..config };
    let world = World::on(base, home, open).await;
    sql.close().await;
    let answer = refusal(world.address).await;
    assert!(answer.contains(r#""database":"failed","storage":"none""#), "{answer}");
    assert!(world.get("/metrics", "").await.contains("\nkiln_database_up 0\n"));
}

#[tokio::test]
async fn a_shutdown_ends_streams_and_the_server_within_its_bound() {
    let mut world = World::start().await;
    let mut agent = world.agent("worker").await;
    let link = agent.connect(&[]).await;
    let build = world.submit(vec![shell("a")]).await;
    let mut watch = world.watch(&build.id, build.last_event).await;
    world.shutdown.cancel();
    assert_eq!(link.end().await.code(), Code::Unavailable);
    let status = loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the watch ended as if the build were done"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    let running = world.running.take().unwrap();
    tokio::time::timeout(Duration::from_secs(9), running.wait()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_folder_has_one_server_and_its_rows_outlive_it() {
    let home = tempfile::tempdir().unwrap();
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: home.path().to_owned(),
        ..Config::default()
    };
    let stop = CancellationToken::new();
    let first = serve(config.clone(), stop.clone()).await.unwrap();
    let base = Base::local(Arc::new(Memory::default()));
    assert!(serve_with(config.clone(), base, CancellationToken::new()).await.is_err());
    first.app().create_project("kept", None, 0).await.unwrap();
    let secret = std::fs::read_to_string(home.path().join("admin.token")).unwrap();
    stop.cancel();
    first.wait().await.unwrap();

    let stop = CancellationToken::new();
    let second = serve(config, stop.clone()).await.unwrap();
    second.app().project("kept").await.unwrap();
    second.app().authenticate(secret.trim()).await.unwrap();
    stop.cancel();
    second.wait().await.unwrap();
}

#[tokio::test]
async fn a_call_keeps_its_id_and_one_without_is_given_one() {
    let world = World::start().await;
    let ask = async |id: Option<&str>| {
        let mut request = tonic::Request::new(v1::ListAgentsRequest {});
        if let Some(id) = id {
            request.metadata_mut().insert("x-request-id", id.parse().unwrap());
        }
        let answer = world.admins().list_agents(request).await.unwrap();
        answer.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(ask(Some("ci-17.a:b")).await, "ci-17.a:b");
    let long = "x".repeat(65);
    for replaced in [None, Some(""), Some("two words"), Some("{}"), Some(long.as_str())] {
        let id = ask(replaced).await;
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    }
    assert_ne!(ask(None).await, ask(None).await);
    // It stands on what is refused too.
    let mut request = tonic::Request::new(v1::ListAgentsRequest {});
    request.metadata_mut().insert("x-request-id", "mine".parse().unwrap());
    let mut stranger = v1::admin_service_client::AdminServiceClient::new(world.client(""));
    let refused = stranger.list_agents(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(refused.metadata().get("x-request-id").unwrap(), "mine");
}

#[tokio::test]
async fn the_health_service_answers_without_a_token() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let world = World::start().await;
    let service = "kiln.v1.BuildService".to_owned();
    let mut health = HealthClient::new(world.client(""));
    let answer = health.check(HealthCheckRequest { service }).await.unwrap().into_inner();
    assert_eq!(answer.status, 1);
    let listed = world.admins().list_agents(v1::ListAgentsRequest {}).await.unwrap();
    assert!(listed.into_inner().agents.is_empty());
}
