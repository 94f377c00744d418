//! Wake-ups between replicas, on a real Postgres.

use std::time::Duration;

use futures::FutureExt;
use kiln_core::id::BuildId;
use kiln_server::wake::{Subscription, Topic, Wake, postgres::Postgres};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::fixture::{Kind, Made, administer, make, uuid};

async fn soon(subscription: &Subscription) {
    tokio::time::timeout(Duration::from_secs(20), subscription.changed())
        .await
        .expect("a hint comes");
}

fn build(n: u128) -> Topic {
    Topic::Build(BuildId::from_uuid(uuid(n)))
}

async fn on_two_replicas<R: Future<Output = ()>>(
    test: impl FnOnce(Postgres, Postgres, String) -> R,
) {
    let Some((Made { url, .. }, ended)) = make(Kind::Postgres).await else { return };
    let tasks = TaskTracker::new();
    let shutdown = CancellationToken::new();
    let start =
        async || Postgres::start(&url, Uuid::now_v7(), &tasks, shutdown.clone()).await.unwrap();
    test(start().await, start().await, url.clone()).await;
    shutdown.cancel();
    tasks.close();
    tasks.wait().await;
    ended.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_hear_each_other_and_not_themselves() {
    on_two_replicas(async |a, b, _| {
        let [at_a, at_b] = [a.subscribe(&[build(1)]), b.subscribe(&[build(1)])];
        let other = b.subscribe(&[build(2)]);
        let answer = a.subscribe(&[Topic::Queue]);
        a.publish(&[build(1)]);
        soon(&at_a).await;
        soon(&at_b).await;
        // Notifications come in order, so the one of `a` itself is behind us when the answer of `b` is there.
        b.publish(&[Topic::Queue]);
        soon(&answer).await;
        assert!(at_a.changed().now_or_never().is_none());
        assert!(other.changed().now_or_never().is_none());
        // More than one notification holds.
        let many: Vec<_> = (10..1_000).map(build).collect();
        a.publish(&many);
        soon(&other).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_wakes_everybody_and_is_made_again() {
    on_two_replicas(async |a, b, url| {
        let [at_a, at_b] = [a.subscribe(&[build(1)]), b.subscribe(&[build(1)])];
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE application_name = 'kiln-wake' AND datname = current_database()";
        administer(&url, kill).await;
        soon(&at_a).await;
        soon(&at_b).await;
        // Both wake all others when they are back, so two hints may be of that kind; the third is what was published.
        let only_b = b.subscribe(&[build(2)]);
        for _ in 0..3 {
            while only_b.changed().now_or_never().is_none() {
                a.publish(&[build(2)]);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    })
    .await;
}
