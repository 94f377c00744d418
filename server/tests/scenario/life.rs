//! The server's own life: probes, a second one on the same folder, the end.

use std::{sync::Arc, time::Duration};

use kiln_proto::v1;
use kiln_server::{Base, Config, serve, serve_with, store::memory::Memory};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::world::{World, shell};

#[tokio::test]
async fn probes_answer_over_plain_http() {
    let world = World::start().await;
    assert!(world.get("/healthz", "").await.starts_with("HTTP/1.1 200"));
    assert!(world.get("/readyz", "").await.starts_with("HTTP/1.1 200"));
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
