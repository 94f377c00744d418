//! Sessions: what survives the end of a stream, and what is refused.

use kiln_proto::v1::{self, LeaseState, session_request::Frame, session_response::Frame as Said};
use kiln_server::Config;
use tonic::Code;
use tonic_types::StatusExt;

use crate::world::{World, profile, shell};

#[tokio::test]
async fn a_running_job_survives_the_end_of_its_stream() {
    let world = World::start().await;
    let mut agent = world.agent("worker").await;
    let mut link = agent.connect(&[]).await;
    let build = world.submit(vec![shell("a")]).await;
    let lease = link.assigned().await.lease;
    link.start(&lease).await;
    drop(link);

    let mut link = agent.connect(&[(&lease, LeaseState::Running)]).await;
    assert_eq!(link.welcome.keep[0].lease, lease);
    assert!(link.welcome.abandon.is_empty());
    link.finish(&lease, v1::OutcomeState::Succeeded).await;
    assert_eq!(link.answered().await, (lease.clone(), true));
    drop(link);

    // The Ack may be lost with its stream: the agent says it again, and is answered again.
    let mut link = agent.connect(&[(&lease, LeaseState::Finished)]).await;
    assert_eq!(link.welcome.keep[0].lease, lease);
    link.finish(&lease, v1::OutcomeState::Succeeded).await;
    assert_eq!(link.answered().await, (lease, true));
    assert_eq!(world.build(&build.id).await.0.state(), v1::BuildState::Succeeded);
}

#[tokio::test]
async fn a_lease_that_was_never_started_and_is_not_listed_goes_back_to_the_queue() {
    let world = World::start().await;
    let mut agent = world.agent("worker").await;
    let mut link = agent.connect(&[]).await;
    world.submit(vec![shell("a")]).await;
    let first = link.assigned().await.lease;
    drop(link);
    let mut link = agent.connect(&[]).await;
    let second = link.assigned().await;
    assert_ne!(second.lease, first);
    assert_eq!(second.attempt, 1, "no attempt was spent");
    link.finish(&first, v1::OutcomeState::Succeeded).await;
    assert_eq!(link.answered().await, (first, false), "the old lease is to be abandoned");
}

#[tokio::test]
async fn a_cancel_while_the_agent_is_away_is_said_in_the_next_session() {
    let world = World::start().await;
    let mut agent = world.agent("worker").await;
    let mut link = agent.connect(&[]).await;
    let build = world.submit(vec![shell("a")]).await;
    let lease = link.assigned().await.lease;
    link.start(&lease).await;
    drop(link);
    let request = v1::CancelBuildRequest { build: build.id, ..Default::default() };
    world.builds().cancel_build(request).await.unwrap();
    let mut link = agent.connect(&[(&lease, LeaseState::Running)]).await;
    assert!(link.welcome.keep[0].cancelling);
    assert_eq!(link.revoked().await, lease);
}

#[tokio::test]
async fn a_second_instance_is_refused_while_the_first_lives() {
    let world = World::start().await;
    let mut agent = world.agent("worker").await;
    let link = agent.connect(&[]).await;
    // As a copy of the data folder on another machine would, whose counter of Hellos has run ahead.
    let hello = v1::Hello { epoch: 1_000, ..agent.hello("two", &[]) };
    let status = agent.refused(Frame::Hello(hello)).await;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "AGENT_CONNECTED");
    link.say(Frame::Heartbeat(v1::Heartbeat::default())).await;
    let mut link = link;
    link.hear(|word| matches!(word, Said::Beat(_)).then_some(())).await;
}

#[tokio::test]
async fn the_same_instance_takes_over_and_the_old_stream_is_told() {
    let world = World::start().await;
    let mut agent = world.agent("worker").await;
    let old = agent.connect(&[]).await;
    let mut new = agent.connect(&[]).await;
    old.say(Frame::Heartbeat(v1::Heartbeat::default())).await;
    let status = old.end().await;
    assert_eq!(status.get_details_error_info().unwrap().reason, "SESSION_CLOSED");
    world.submit(vec![shell("a")]).await;
    assert_eq!(new.assigned().await.session, new.welcome.session);
}

#[tokio::test]
async fn frames_that_are_wrong_end_the_stream_with_the_field() {
    let world = World::start().await;
    let mut agent = world.agent("worker").await;
    let field = |status: tonic::Status| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        status.get_details_bad_request().unwrap().field_violations[0].field.clone()
    };
    let beat = Frame::Heartbeat(v1::Heartbeat::default());
    assert_eq!(field(agent.refused(beat).await), "hello");
    let hello = v1::Hello { instance: String::new(), ..agent.hello("x", &[]) };
    assert_eq!(field(agent.refused(Frame::Hello(hello)).await), "hello.instance");

    let link = agent.connect(&[]).await;
    link.start("lse_7").await;
    assert_eq!(field(link.end().await), "started.lease");
    let link = agent.connect(&[]).await;
    let hello = agent.hello("one", &[]);
    link.say(Frame::Hello(hello)).await;
    assert_eq!(field(link.end().await), "hello");
    let link = agent.connect(&[]).await;
    link.say(Frame::Heartbeat(v1::Heartbeat { load_millis: -1, ..Default::default() })).await;
    assert_eq!(field(link.end().await), "heartbeat.load_millis");
}

#[tokio::test]
async fn another_protocol_is_refused_with_what_to_upgrade() {
    let world = World::start().await;
    let mut agent = world.agent("worker").await;
    let newer = kiln_proto::PROTOCOL_MAX + 1;
    let hello =
        v1::Hello { protocol_min: newer, protocol_max: newer + 1, ..agent.hello("one", &[]) };
    let status = agent.refused(Frame::Hello(hello)).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("upgrade the server"), "{status:?}");
}

#[tokio::test]
async fn a_drained_agent_is_told_and_gets_nothing_until_it_is_resumed() {
    let world = World::start().await;
    let mut link = world.agent("worker").await.connect(&[]).await;
    let agent = || "worker".to_owned();
    world.admins().drain_agent(v1::DrainAgentRequest { agent: agent() }).await.unwrap();
    link.hear(|word| matches!(word, Said::Drain(_)).then_some(())).await;
    let build = world.submit(vec![shell("a")]).await;
    link.say(Frame::Heartbeat(v1::Heartbeat::default())).await;
    link.hear(|word| match word {
        Said::Beat(_) => Some(()),
        Said::Assign(_) => panic!("a draining agent got a lease"),
        _ => None,
    })
    .await;
    world.admins().resume_agent(v1::ResumeAgentRequest { agent: agent() }).await.unwrap();
    assert_eq!(link.assigned().await.build, build.id);
}

#[tokio::test]
async fn an_evicted_agent_is_gone() {
    let world = World::start().await;
    let mut agent = world.agent("worker").await;
    let link = agent.connect(&[]).await;
    let request = v1::EvictAgentRequest { agent: "worker".into() };
    world.admins().evict_agent(request).await.unwrap();
    let reason = |status: tonic::Status| status.get_details_error_info().unwrap().reason;
    assert_eq!(reason(link.end().await), "AGENT_EVICTED");
    // One that was away learns it when it comes back.
    let hello = agent.hello("one", &[]);
    let status = agent.refused(Frame::Hello(hello)).await;
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(reason(status), "AGENT_EVICTED");
}

/// The connection to the database broke between a claim's commit and its answer: the rows hold a lease that the session
/// never heard of.
#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_given_all_the_same() {
    let world = World::with(|config| Config { sweep_ms: 50, ..config }).await;
    let mut agent = world.agent("worker").await;
    let mut hello = agent.hello("one", &[]);
    hello.profile = Some(profile(1));
    let mut link = agent.greet(hello).await;
    let full = world.submit(vec![shell("a")]).await;
    let held = link.assigned().await.lease;
    link.start(&held).await;

    // Room of which the session does not know: it claims nothing itself.
    let app = world.running.as_ref().unwrap().app();
    let session = link.welcome.session.parse().unwrap();
    let row = app.agents().await.unwrap().remove(0);
    let mut roomy = row.agent.profile.clone();
    roomy.backends.values_mut().for_each(|offer| offer.slots = 2);
    app.update_profile(row.agent.id, roomy).await.unwrap();
    let build = world.submit(vec![shell("b")]).await;
    let lost = app.claim(session).await.unwrap().remove(0);

    let given = link.assigned().await;
    assert_eq!(given.lease, lost.lease.to_string());
    link.start(&given.lease).await;
    link.finish(&given.lease, v1::OutcomeState::Succeeded).await;
    assert_eq!(link.answered().await, (given.lease, true));
    assert_eq!(world.build(&build.id).await.0.state(), v1::BuildState::Succeeded);
    assert_eq!(world.build(&full.id).await.0.state(), v1::BuildState::Running);
}
