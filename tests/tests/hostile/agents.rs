//! Agents: leases that are not theirs or not theirs any more, names that lead out of a folder, logs that are no text.

use kiln_proto::v1::{
    self, log_service_client::LogServiceClient, push_log_request::Frame as Push,
    session_request::Frame,
};
use tonic::{Code, Status};

use crate::server::{Agent, Server, bearer, shell};

/// Pushes these frames; the answers until the stream ends.
async fn push(
    server: &Server,
    agent: &Agent,
    frames: Vec<Push>,
) -> Result<Vec<v1::PushLogResponse>, Status> {
    let mut logs = LogServiceClient::new(server.channel.clone());
    let frames = frames.into_iter().map(|frame| v1::PushLogRequest { frame: Some(frame) });
    let frames = tokio_stream::iter(frames.collect::<Vec<_>>());
    let mut stream = logs.push_log(bearer(&agent.secret, frames)).await?.into_inner();
    let mut answers = vec![];
    while let Some(answer) = stream.message().await? {
        answers.push(answer);
    }
    Ok(answers)
}

fn open(lease: &str, stream: &str) -> Push {
    Push::Open(v1::PushLogOpen { lease: lease.into(), stream: stream.into() })
}

fn finished(lease: &str, artifacts: Vec<v1::Artifact>, log: i64) -> Frame {
    let outcome = v1::Outcome { state: v1::OutcomeState::Succeeded.into(), ..Default::default() };
    let log_lengths = [("main".to_owned(), log)].into();
    let outcome = Some(outcome);
    let lease = lease.into();
    Frame::Finished(v1::Finished { lease, outcome, artifacts, log_lengths })
}

#[tokio::test]
async fn a_lease_of_another_or_of_before_is_abandoned_and_its_log_is_closed_to_others() {
    let server = Server::start().await;
    let build = server.submit(vec![shell("a")]).await;
    let mut owner = server.agent("owner").await;
    let lease = owner.running().await.lease;
    let mut thief = server.agent("thief").await;

    thief.start(&lease).await;
    assert_eq!(thief.abandoned().await, lease);
    thief.say(finished(&lease, vec![], 0)).await;
    assert_eq!(thief.abandoned().await, lease);
    let denied = push(&server, &thief, vec![open(&lease, "main")]).await.unwrap_err();
    let unknown = format!("lse_{:032x}", 7);
    let missing = push(&server, &thief, vec![open(&unknown, "main")]).await.unwrap_err();
    // It does not even learn that the lease exists.
    assert_eq!((denied.code(), missing.code()), (Code::NotFound, Code::NotFound), "{denied:?}");

    // The lease is settled: what is said of it later changes nothing.
    owner.say(finished(&lease, vec![], 0)).await;
    assert_eq!(owner.acked().await, lease);
    let late = v1::Outcome {
        state: v1::OutcomeState::Failed.into(),
        failure: v1::FailureKind::User.into(),
        ..Default::default()
    };
    let late = v1::Finished { lease: lease.clone(), outcome: Some(late), ..Default::default() };
    owner.say(Frame::Finished(late)).await;
    assert_eq!(owner.acked().await, lease, "it was answered before");
    let request = v1::GetBuildRequest { build: build.id };
    let answer = server.builds().get_build(server.request(request)).await.unwrap().into_inner();
    assert_eq!(answer.build.unwrap().state(), v1::BuildState::Succeeded);
    server.is_well().await;
}

#[tokio::test]
async fn names_of_artifacts_that_lead_out_of_the_folder_fail_their_job() {
    let server = Server::start().await;
    let mut agent = server.agent("worker").await;
    for name in ["../x", "/etc/passwd", "a/../../b", "a/./b", "a//b", "", "nul\0", "."] {
        let once = v1::RetryPolicy { max_attempts: 1, ..Default::default() };
        let build = server.submit(vec![v1::JobSpec { retry: Some(once), ..shell("a") }]).await;
        let lease = agent.running().await.lease;
        let artifact =
            v1::Artifact { name: name.into(), size: 1, sha256: "0".repeat(64), mode: 0o644 };
        agent.say(finished(&lease, vec![artifact], 0)).await;
        assert_eq!(agent.acked().await, lease);
        let request = v1::GetBuildRequest { build: build.id };
        let answer = server.builds().get_build(server.request(request)).await.unwrap();
        let job = answer.into_inner().jobs.remove(0);
        assert_eq!(job.state(), v1::JobState::Failed, "{name:?}");
        let told = job.outcome.unwrap_or_default();
        assert!(told.message.contains("artifacts"), "{name:?}: {told:?}");
    }
    server.is_well().await;
}

#[tokio::test]
async fn a_log_of_one_line_of_ten_megabytes_that_is_no_text_comes_back_as_it_was() {
    let server = Server::start().await;
    let mut agent = server.agent("worker").await;
    server.submit(vec![shell("a")]).await;
    let assign = agent.running().await;
    // No line end; NULs, bytes that are no UTF-8, escape sequences.
    let line: Vec<u8> = (0..10_u32 << 20)
        .map(|n| match n.wrapping_mul(2_654_435_761) >> 24 {
            10 | 13 => 0,
            byte => u8::try_from(byte).unwrap(),
        })
        .collect();
    let mut frames = vec![open(&assign.lease, "main")];
    for (number, piece) in line.chunks(1 << 20).enumerate() {
        let offset = i64::try_from(number << 20).unwrap();
        let data = bytes::Bytes::copy_from_slice(piece);
        frames.push(Push::Chunk(v1::PushLogChunk { offset, data }));
    }
    let length = i64::try_from(line.len()).unwrap();
    frames.push(Push::End(v1::PushLogEnd { length }));
    let answers = push(&server, &agent, frames).await.unwrap();
    assert_eq!(answers.last().unwrap().durable, length);
    agent.say(finished(&assign.lease, vec![], length)).await;
    assert_eq!(agent.acked().await, assign.lease);

    let mut logs = LogServiceClient::new(server.channel.clone());
    let request = v1::FollowLogRequest { job: assign.job.clone(), ..Default::default() };
    let mut stream = logs.follow_log(server.request(request)).await.unwrap().into_inner();
    let mut held = vec![];
    while let Some(piece) = stream.message().await.unwrap() {
        assert!(piece.data.len() <= 1 << 20, "a piece of {} bytes", piece.data.len());
        held.extend_from_slice(&piece.data);
    }
    assert!(held == line, "{} bytes came back of {length}", held.len());
    let request = v1::ExplainJobRequest { job: assign.job };
    let told = server.builds().explain_job(server.request(request)).await.unwrap().into_inner();
    let shown: usize = told.lines.iter().map(String::len).sum();
    assert!(shown < 1 << 20, "{shown} bytes of lines");

    // A chunk above the limit, and a gap.
    server.submit(vec![shell("b")]).await;
    let lease = agent.running().await.lease;
    let chunk =
        |offset, size| Push::Chunk(v1::PushLogChunk { offset, data: vec![b'x'; size].into() });
    let large = vec![open(&lease, "main"), chunk(0, (1 << 20) + 1)];
    let large = push(&server, &agent, large).await.unwrap_err();
    assert!(matches!(large.code(), Code::InvalidArgument | Code::OutOfRange), "{large:?}");
    let gap = push(&server, &agent, vec![open(&lease, "main"), chunk(5, 1)]).await.unwrap_err();
    assert!(matches!(gap.code(), Code::OutOfRange | Code::FailedPrecondition), "{gap:?}");
    let stream = push(&server, &agent, vec![open(&lease, "../main"), chunk(0, 1)]).await;
    assert_eq!(stream.unwrap_err().code(), Code::InvalidArgument);
    server.is_well().await;
}
