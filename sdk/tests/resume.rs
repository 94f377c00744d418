//! Against a server that cuts: what the client hands on has no gap and nothing twice.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    reason = "a test may panic, and its numbers are small"
)]

mod fake;

use std::time::Duration;

use fake::{Fake, Script};
use futures::TryStreamExt;
use kiln_sdk::{Client, LogRequest, Options, Policy, v1};
use tonic::Code;

/// Quick, so that a test waits for nothing.
const QUICK: Policy =
    Policy { attempts: 8, base: Duration::from_millis(1), cap: Duration::from_millis(5) };

async fn client(fake: &Fake) -> Client {
    let options = Options::new(fake.url()).token("secret").retry(QUICK).resume(QUICK);
    Client::connect(options).await.unwrap()
}

#[tokio::test]
async fn a_watch_goes_on_behind_the_last_event() {
    let fake = Fake::start(Script { cut_events: 2, ..Script::default() }).await;
    let events: Vec<_> = client(&fake).await.watch("bld", 0).try_collect().await.unwrap();
    let numbers: Vec<_> = events.iter().map(|event| event.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(fake.seen().watched, [0, 2, 4, 6], "each stream begins where the last one was cut");
}

#[tokio::test]
async fn a_watch_of_nothing_is_an_error_at_once() {
    let fake = Fake::start(Script::default()).await;
    let error = client(&fake).await.watch("none", 0).try_next().await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert_eq!(fake.seen().watched.len(), 1, "what can't pass is not tried again");
}

#[tokio::test]
async fn a_log_goes_on_at_the_next_byte() {
    let fake = Fake::start(Script { cut_log: 3, ..Script::default() }).await;
    let request = LogRequest { job: "job".into(), ..Default::default() };
    let pieces: Vec<_> = client(&fake).await.logs(request).try_collect().await.unwrap();
    let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.data.to_vec()).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), fake::LOG);
    assert!(pieces.last().unwrap().complete);
    let seen = fake.seen().followed;
    assert!(seen.len() > 2 && seen[1] == ("lse".to_owned(), 3), "{seen:?}");
}

#[tokio::test]
async fn a_submission_keeps_its_key_over_repetitions() {
    let fake = Fake::start(Script { refuse_submits: 2, ..Script::default() }).await;
    let answer = client(&fake).await.submit(v1::SubmitBuildRequest::default()).await.unwrap();
    assert!(answer.created);
    let keys = fake.seen().keys;
    assert_eq!(keys.len(), 3);
    assert!(keys[0].len() == 32 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[tokio::test]
async fn a_pause_that_the_server_asks_for_is_kept() {
    let pause = Duration::from_millis(200);
    let fake = Fake::start(Script { refuse_submits: 1, pause, ..Script::default() }).await;
    let begin = std::time::Instant::now();
    client(&fake).await.submit(v1::SubmitBuildRequest::default()).await.unwrap();
    assert!(begin.elapsed() >= pause, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn what_could_happen_twice_is_tried_once() {
    let fake = Fake::start(Script::default()).await;
    let error = client(&fake).await.create_token(v1::CreateTokenRequest::default()).await;
    assert_eq!(error.unwrap_err().code(), Code::Unavailable);
    assert_eq!(fake.seen().tokens, 1);
}

#[tokio::test]
async fn an_upload_goes_on_where_the_server_stands() {
    let fake = Fake::start(Script { cut_upload: 600_000, ..Script::default() }).await;
    let folder = tempfile::tempdir().unwrap();
    let content = content();
    let path = folder.path().join("source");
    std::fs::write(&path, &content).unwrap();
    let client = client(&fake).await;
    let done = client.upload(&path).await.unwrap();
    assert_eq!(done.size, content.len() as u64);
    assert_eq!(fake.seen().stored, content);
    assert!(fake.seen().offsets.len() > 1, "the upload was cut at least once");
    let again = client.upload(&path).await.unwrap();
    assert_eq!((again.sent, again.sha256), (0, done.sha256), "what is held is not sent");
}

#[tokio::test]
async fn a_download_resumes_and_is_verified() {
    let fake = Fake::start(Script { cut_download: 400_000, ..Script::default() }).await;
    fake.hold(content());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("artifact");
    let done = client(&fake).await.download("job", "artifact", &path).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content());
    assert_eq!(done.size, content().len() as u64);
    assert!(fake.seen().gotten.len() > 2 && fake.seen().gotten[1] > 0, "{:?}", fake.seen().gotten);
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "no part is left");
}

#[tokio::test]
async fn a_damaged_download_leaves_no_file() {
    let fake = Fake::start(Script { damage: true, ..Script::default() }).await;
    fake.hold(content());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("artifact");
    let error = client(&fake).await.download("job", "artifact", &path).await.unwrap_err();
    assert_eq!(error.code(), Code::DataLoss);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address() {
    let error = Client::connect(Options::new("http://127.0.0.1:1")).await.unwrap_err();
    assert!(error.is_unreachable());
    assert!(error.message().starts_with("cannot reach http://127.0.0.1:1: "), "{error}");
    let error = Client::connect(Options::new("localhost:1")).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.hint().unwrap().contains("http://host:port"));
}

/// Larger than several pieces, and no two pieces alike.
fn content() -> Vec<u8> {
    (0..1_500_000_u32).flat_map(|n| (n / 7).to_le_bytes()).take(1_500_000).collect()
}
