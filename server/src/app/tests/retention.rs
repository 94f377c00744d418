//! What is removed when it is old, and what is not.

use super::*;
use crate::{app::Expired, config::Retention, files::NoFiles};

const DAY_MS: u64 = 86_400_000;

scenarios! {
    builds_are_kept_as_long_as_the_policy_says,
}

async fn builds_are_kept_as_long_as_the_policy_says(world: World) {
    let session = world.connect("a", 4).await;
    let ended = world.submit(vec![job("a", &[]), job("b", &["a"])]).await.build.id;
    world.run_one(session, failed()).await;
    let running = world.submit(vec![job("a", &[])]).await.build.id;
    let given = world.claim(session).await.remove(0);
    world.start(session, given.lease).await;
    let keep = Retention { build_days: 2, audit_days: 2, ..Retention::default() };
    let expire = async |keep: &Retention| world.app.expire(&NoFiles, keep).await.unwrap();

    world.clock.advance(DAY_MS);
    assert_eq!(expire(&keep).await, Expired::default());
    world.clock.advance(2 * DAY_MS);
    assert_eq!(expire(&Retention::default()).await, Expired::default(), "nothing is for ever");
    assert_eq!(expire(&keep).await.builds, 1);
    assert!(world.app.build(ended).await.is_err());
    assert_eq!(world.statuses(running).await, "a:running");
    world.finish(session, given.lease, Outcome::Succeeded).await;
    assert_eq!(expire(&keep).await.builds, 0, "it ended just now");
    world.check().await;
    world.stop().await;
}
