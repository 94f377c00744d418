//! What a server counts, and who may read it.

use kiln_proto::v1;
use kiln_server::{Config, config};

use crate::world::{World, shell};

/// The value of a metric with its labels, without what follows the point.
fn value(page: &str, name: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no {name} in:\n{page}"));
    line.split('.').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_reader_of_the_whole_farm_reads_the_metrics() {
    let world = World::start().await;
    let reader = world.token("prometheus", v1::Role::Reader, "").await;
    world
        .projects()
        .create_project(v1::CreateProjectRequest { name: "web".into(), ..Default::default() })
        .await
        .unwrap();
    let bound = world.token("web", v1::Role::Reader, "web").await;
    let agent = world.agent("worker").await.secret;
    let head = |answer: String| answer.lines().next().unwrap().to_owned();
    assert_eq!(head(world.get("/metrics", "").await), "HTTP/1.1 401 Unauthorized");
    assert_eq!(head(world.get("/metrics", "wrong").await), "HTTP/1.1 401 Unauthorized");
    assert_eq!(head(world.get("/metrics", &bound).await), "HTTP/1.1 403 Forbidden");
    assert_eq!(head(world.get("/metrics", &agent).await), "HTTP/1.1 403 Forbidden");
    assert_eq!(head(world.get("/metrics/", &reader).await), "HTTP/1.1 404 Not Found");
    let answer = world.get("/metrics", &reader).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert_eq!(value(&answer, r#"kiln_refused_calls_total{reason="credential"}"#), 2);
    assert_eq!(value(&answer, r#"kiln_refused_calls_total{reason="permission"}"#), 2);
}

#[tokio::test]
async fn metrics_are_for_everyone_where_they_are_open() {
    let open = |config| Config { metrics: config::Metrics { open: true }, ..config };
    let world = World::with(open).await;
    assert!(world.get("/metrics", "").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_build_shows_in_the_metrics() {
    let world = World::start().await;
    let mut agent = world.agent("worker").await;
    let mut link = agent.connect(&[]).await;
    world.submit(vec![shell("one"), shell("two"), shell("three")]).await;
    let leases = [link.assigned().await.lease, link.assigned().await.lease];
    let third = link.assigned().await.lease;
    for (lease, state) in leases.iter().zip([v1::OutcomeState::Succeeded, v1::OutcomeState::Failed])
    {
        link.start(lease).await;
        link.finish(lease, state).await;
        while link.answered().await.0 != *lease {}
    }
    link.start(&third).await;
    // What no agent can run waits.
    let elsewhere = v1::JobSpec { backend: "docker".into(), ..shell("four") };
    world.submit(vec![elsewhere]).await;
    let page = loop {
        let page = world.get("/metrics", &world.admin).await;
        // Nothing answers a start.
        if value(&page, "kiln_start_wait_seconds_count") > 2 {
            break page;
        }
    };
    for (name, wanted) in [
        (r#"kiln_submissions_total{result="created"}"#, 2),
        (r#"kiln_leases_ended_total{outcome="succeeded"}"#, 1),
        (r#"kiln_leases_ended_total{outcome="user"}"#, 1),
        (r#"kiln_leases_ended_total{outcome="lost"}"#, 0),
        ("kiln_queue_wait_seconds_count", 3),
        ("kiln_start_wait_seconds_count", 3),
        ("kiln_run_seconds_count", 2),
        (r#"kiln_queue_jobs{wait="slot"}"#, 1),
        ("kiln_sessions", 1),
        ("kiln_replica_sessions", 1),
        ("kiln_database_up", 1),
    ] {
        assert_eq!(value(&page, name), wanted, "{name}");
    }
    let open = ["leased", "running"].map(|phase| format!("kiln_leases{{phase=\"{phase}\"}}"));
    assert_eq!(open.iter().map(|name| value(&page, name)).sum::<u64>(), 1);
    assert!(value(&page, "kiln_commit_group_size_count") >= 5);
    assert!(value(&page, "kiln_queue_wait_seconds_sum") < 20);
}
