//! Watching where hints are lost, and where nobody reads.

use std::{sync::Arc, time::Duration};

use kiln_proto::v1;
use kiln_server::{
    Base,
    store::memory::Memory,
    wake::{Local, Subscription, Topic, Wake},
};

use crate::world::{World, shell};

const PATIENCE: Duration = Duration::from_mins(1);

/// Takes hints, and passes none on.
#[derive(Debug, Default)]
struct Mute(Local);

impl Wake for Mute {
    fn publish(&self, _: &[Topic]) {}

    fn tell_others(&self, _: &[Topic]) {}

    fn subscribe(&self, topics: &[Topic]) -> Subscription {
        self.0.subscribe(topics)
    }
}

async fn cancel(world: &World, build: &v1::Build) {
    let request = v1::CancelBuildRequest { build: build.id.clone(), ..Default::default() };
    world.builds().cancel_build(request).await.unwrap();
}

#[tokio::test]
async fn a_watch_sees_everything_though_every_hint_is_lost() {
    let base = Base { wake: Arc::new(Mute::default()), ..Base::local(Arc::new(Memory::default())) };
    let often = |config| kiln_server::Config { sweep_ms: 20, ..config };
    let world = World::on(base, tempfile::tempdir().unwrap(), often).await;
    let build = world.submit(vec![shell("a")]).await;
    let mut watch = world.watch(&build.id, 0).await;
    let mut next = async || tokio::time::timeout(PATIENCE, watch.message()).await.unwrap().unwrap();
    assert_eq!(next().await.unwrap().event.unwrap().number, 1);
    // It waits for a hint by now, or soon: what comes after this it can only find by itself.
    cancel(&world, &build).await;
    let mut numbers = vec![];
    while let Some(answer) = next().await {
        numbers.push(answer.event.unwrap().number);
    }
    assert_eq!(numbers, [2, 3], "the job, the build, and the end of the watch");
}

#[tokio::test]
async fn a_watcher_that_does_not_read_misses_nothing_and_slows_nobody() {
    let world = World::start().await;
    let jobs: Vec<_> = (0..5_000).map(|n| shell(&format!("j{n}"))).collect();
    let build = world.submit(jobs).await;
    let mut slow = world.watch(&build.id, 0).await;
    // Far more than a window of the connection holds; the server goes on meanwhile.
    cancel(&world, &build).await;
    assert_eq!(world.build(&build.id).await.0.state(), v1::BuildState::Cancelled);
    let mut wanted = 1;
    while let Some(answer) = tokio::time::timeout(PATIENCE, slow.message()).await.unwrap().unwrap()
    {
        assert_eq!(answer.event.unwrap().number, wanted);
        wanted += 1;
    }
    assert_eq!(wanted, 5_003, "submitted, each job, the build");
}
