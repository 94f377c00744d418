//! Builds from submission to end, as a client and an agent see them.

use kiln_proto::v1::{
    self, event::Change, session_request::Frame, session_response::Frame as Said,
};
use tonic::Code;
use tonic_types::StatusExt;

use crate::world::{World, shell};

/// What a watch says, in short.
async fn story(world: &World, build: &str, after: i64) -> Vec<String> {
    let mut watch = world.watch(build, after).await;
    let mut story = vec![];
    let mut number = after;
    while let Some(answer) = watch.message().await.unwrap() {
        let event = answer.event.unwrap();
        number += 1;
        assert_eq!(event.number, number, "numbers have no gaps");
        story.push(match event.change.unwrap() {
            Change::Submitted(submitted) => format!("submitted {}", submitted.jobs),
            Change::Job(job) => format!("{} {:?} {}", job.name, job.state(), job.agent),
            Change::BuildChanged(change) => format!("build {:?}", change.state()),
        });
    }
    story
}

#[tokio::test]
async fn a_build_goes_from_submission_to_success_and_a_watch_sees_all_of_it() {
    let world = World::start().await;
    let mut link = world.agent("worker").await.connect(&[]).await;
    let mut second = shell("test");
    second.needs = vec![v1::Need { job: "compile".into(), artifacts: false }];
    let build = world.submit(vec![shell("compile"), second]).await;
    let live = world.watch(&build.id, 0).await;

    for name in ["compile", "test"] {
        let assign = link.assigned().await;
        let spec = assign.spec.unwrap();
        assert_eq!(spec.name, name);
        assert_eq!(
            (assign.session, assign.build),
            (link.welcome.session.clone(), build.id.clone())
        );
        assert!(spec.timeouts.unwrap().total_ms > 0, "defaults are filled in");
        link.start(&assign.lease).await;
        link.finish(&assign.lease, v1::OutcomeState::Succeeded).await;
        assert_eq!(link.answered().await, (assign.lease.clone(), true));
        link.finish(&assign.lease, v1::OutcomeState::Succeeded).await;
        assert_eq!(
            link.answered().await,
            (assign.lease, true),
            "a repeated report is acknowledged"
        );
    }

    let (done, jobs) = world.build(&build.id).await;
    assert_eq!(done.state(), v1::BuildState::Succeeded);
    assert!(jobs.iter().all(|job| job.state() == v1::JobState::Succeeded && job.agent == "worker"));
    let story = story(&world, &build.id, 0).await;
    let jobs: Vec<_> = story.iter().filter(|line| !line.starts_with("build")).collect();
    assert_eq!(jobs[0], "submitted 2");
    let compiled = jobs.iter().position(|line| *line == "compile Succeeded worker").unwrap();
    let tested = jobs.iter().position(|line| *line == "test Running worker").unwrap();
    assert!(compiled < tested, "{story:?}");
    assert_eq!(story.last().unwrap(), "build Succeeded", "{story:?}");
    assert_eq!(i64::try_from(story.len()), Ok(done.last_event));

    let live: Vec<_> = futures::StreamExt::collect(live).await;
    assert_eq!(live.len(), story.len(), "a live watch sees the same, and ends");
    assert!(live.into_iter().all(|event| event.is_ok()));
}

#[tokio::test]
async fn a_watch_goes_on_behind_a_number() {
    let world = World::start().await;
    let build = world.submit(vec![shell("a")]).await;
    let request = v1::CancelBuildRequest {
        build: build.id.clone(),
        reason: "no".into(),
        ..Default::default()
    };
    world.builds().cancel_build(request).await.unwrap();
    let all = story(&world, &build.id, 0).await;
    assert_eq!(story(&world, &build.id, 1).await, all[1..]);
    let wrong = v1::WatchBuildRequest { build: build.id, after: -1 };
    let status = world.builds().watch_build(wrong).await.unwrap_err();
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "after");
}

#[tokio::test]
async fn a_cancel_reaches_the_agent_and_its_answer_ends_the_build() {
    let world = World::start().await;
    let mut link = world.agent("worker").await.connect(&[]).await;
    let build = world.submit(vec![shell("long"), shell("other")]).await;
    let lease = link.assigned().await.lease;
    link.start(&lease).await;
    let other = link.assigned().await.lease;
    let request = v1::CancelBuildRequest { build: build.id.clone(), ..Default::default() };
    world.builds().cancel_build(request).await.unwrap();
    let revoked = [link.revoked().await, link.revoked().await];
    assert!(revoked.contains(&lease) && revoked.contains(&other));
    link.finish(&lease, v1::OutcomeState::Failed).await;
    assert_eq!(link.answered().await, (lease, true));
    link.finish(&other, v1::OutcomeState::Cancelled).await;
    assert_eq!(link.answered().await, (other, true));
    assert_eq!(world.build(&build.id).await.0.state(), v1::BuildState::Cancelled);
}

#[tokio::test]
async fn what_an_agent_refuses_waits_and_says_why() {
    let world = World::start().await;
    let mut link = world.agent("worker").await.connect(&[]).await;
    let build = world.submit(vec![shell("a")]).await;
    let lease = link.assigned().await.lease;
    let reason = "no space left".to_owned();
    link.say(Frame::Refused(v1::Refused { lease: lease.clone(), reason })).await;
    let again = link.assigned().await;
    assert_ne!(again.lease, lease);
    let job = world.build(&build.id).await.1.remove(0).id;
    let explained = world.builds().explain_job(v1::ExplainJobRequest { job }).await.unwrap();
    assert_eq!(explained.into_inner().job.unwrap().attempt, 1, "no attempt was spent");
}

#[tokio::test]
async fn all_that_is_wrong_with_a_submission_is_named_and_nothing_is_stored() {
    let world = World::start().await;
    let mut job = shell("a b");
    job.timeouts = Some(v1::Timeouts { total_ms: -1, ..Default::default() });
    let spec = Some(v1::BuildSpec { jobs: vec![job], ..Default::default() });
    let request = v1::SubmitBuildRequest { spec, ..Default::default() };
    let status = world.builds().submit_build(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let fields = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(fields[0].field, "spec.jobs[0].timeouts.total_ms");
    let status = world.builds().submit_build(v1::SubmitBuildRequest::default()).await.unwrap_err();
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "spec");
    let listed = world.builds().list_builds(v1::ListBuildsRequest::default()).await.unwrap();
    assert!(listed.into_inner().builds.is_empty());
}

#[tokio::test]
async fn pages_follow_each_other_and_belong_to_their_filters() {
    let world = World::start().await;
    let mut wanted = vec![];
    for _ in 0..5 {
        wanted.push(world.submit(vec![shell("a")]).await.id);
    }
    let mut request = v1::ListBuildsRequest {
        page_size: 2,
        order: v1::BuildOrder::Oldest.into(),
        ..Default::default()
    };
    let mut seen = vec![];
    loop {
        let page = world.builds().list_builds(request.clone()).await.unwrap().into_inner();
        seen.extend(page.builds.into_iter().map(|build| build.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(seen, wanted);
    request.order = v1::BuildOrder::Newest.into();
    let status = world.builds().list_builds(request).await.unwrap_err();
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "page_token");
}

#[tokio::test]
async fn many_leases_go_through_one_session() {
    let world = World::start().await;
    let mut link = world.agent("worker").await.connect(&[]).await;
    let build = world.submit((0..200).map(|n| shell(&format!("j{n}"))).collect()).await;
    let mut open = 200;
    while open > 0 {
        let said = link
            .hear(|word| match word {
                Said::Assign(assign) => Some((assign.lease.clone(), true)),
                Said::Ack(ack) => Some((ack.lease.clone(), false)),
                _ => None,
            })
            .await;
        match said {
            (lease, true) => {
                link.start(&lease).await;
                link.finish(&lease, v1::OutcomeState::Succeeded).await;
            }
            (_, false) => open -= 1,
        }
    }
    assert_eq!(world.build(&build.id).await.0.state(), v1::BuildState::Succeeded);
}
