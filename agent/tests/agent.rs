//! Whole agents against a server that the test plays: what is said, what is sent, and what survives.

#![allow(
    clippy::unwrap_used,
    clippy::format_collect,
    reason = "helpers of tests fail by panicking"
)]

mod fake;

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use fake::{Fake, sha256};
use kiln_agent::{
    Address, Config, Identity,
    backend::{Backend, Failure, Unavailable},
    enroll,
    run::Run,
    run_with,
};
use kiln_core::{
    agent::Offer,
    id::{BuildId, JobId, LeaseId},
    session::{Artifact, Assignment},
    spec::{JobSpec, Source},
};
use kiln_proto::v1;
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use v1::session_response::Frame;

/// A backend whose scripts are a few words.
#[derive(Debug)]
struct Words {
    gate: Semaphore,
    runs: AtomicUsize,
    adoptions: AtomicUsize,
}

impl Words {
    async fn speak(&self, job: &Assignment, run: &Run) -> Result<(), Failure> {
        for line in job.spec.script.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "say" => run.say(rest).await.unwrap(),
                "flood" => {
                    let line = "0123456789abcde".repeat(4_000);
                    for _ in 0..rest.parse::<u32>().unwrap() {
                        run.say(&line).await.unwrap();
                    }
                }
                "stage" => run.stage(rest).await.unwrap(),
                "remember" => run.remember(rest).await.unwrap(),
                "gate" => self.gate.acquire().await.unwrap().forget(),
                "link" => symlink(rest, run.folder.make_workspace().unwrap().join("link")).unwrap(),
                "write" => {
                    let path = run.folder.make_workspace().unwrap().join(rest);
                    fs::write(path, rest.repeat(100)).unwrap();
                }
                "read" => {
                    let text = fs::read_to_string(run.workspace().join(rest)).unwrap();
                    run.say(&text).await.unwrap();
                }
                "fail" => return Err(Failure::user("it said fail")),
                "hang" => {
                    run.cancel.cancelled().await;
                    return Err(Failure::user("killed"));
                }
                other => panic!("unknown word {other}"),
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Backend for Words {
    fn kind(&self) -> &'static str {
        "words"
    }

    async fn probe(&self) -> Result<Offer, Unavailable> {
        Ok(Offer { slots: 4, ..Offer::default() })
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<(), Failure> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        self.speak(job, run).await
    }

    async fn adopt(&self, _: &Assignment, run: &Run, handle: &str) -> Result<(), Failure> {
        self.adoptions.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        run.say(&format!("adopted {handle} hunter2")).await.unwrap();
        Ok(())
    }

    async fn remove(&self, _: LeaseId) {}

    async fn sweep(&self, _: &[LeaseId]) {}
}

struct Setup {
    fake: Fake,
    words: Arc<Words>,
    config: Config,
    identity: Identity,
    _data: tempfile::TempDir,
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), kiln_agent::agent::Error>>,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

impl Setup {
    async fn new() -> Self {
        let fake = Fake::start().await;
        let data = tempfile::tempdir().unwrap();
        let address = Address { url: fake.url.clone(), ..Address::default() };
        let identity = enroll(&address, "token", "one", data.path()).await.unwrap();
        let config = Config {
            server: fake.url.clone(),
            data_dir: data.path().to_owned(),
            cancel_grace_ms: 100,
            ..Config::default()
        };
        let words = Words {
            gate: Semaphore::new(0),
            runs: AtomicUsize::new(0),
            adoptions: AtomicUsize::new(0),
        };
        Self { fake, words: Arc::new(words), config, identity, _data: data }
    }

    fn start(&self) -> Running {
        let stop = CancellationToken::new();
        let (config, identity, token) = (self.config.clone(), self.identity.clone(), stop.clone());
        let backends: Vec<Arc<dyn Backend>> = vec![self.words.clone()];
        #[expect(clippy::disallowed_methods, reason = "joined by stop")]
        let task = tokio::spawn(async move {
            run_with(config, &identity, backends, "/bin/false".into(), token).await
        });
        Running { stop, task }
    }

    fn folder(&self, lease: LeaseId) -> std::path::PathBuf {
        self.config.data_dir.join("leases").join(lease.to_string())
    }

    async fn is_removed(&self, lease: LeaseId) {
        let folder = self.folder(lease);
        for _ in 0..500 {
            if !folder.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} stays", folder.display());
    }
}

fn job(n: u128, script: &str) -> Assignment {
    let uuid = Uuid::from_u128(n);
    let spec = JobSpec {
        name: "job".into(),
        backend: "words".into(),
        script: script.into(),
        ..JobSpec::default()
    };
    Assignment {
        lease: LeaseId::from_uuid(uuid),
        job: JobId::from_uuid(uuid),
        build: BuildId::from_uuid(uuid),
        project: "default".into(),
        attempt: 1,
        spec,
        inputs: vec![],
        exclusive: false,
        trace: None,
    }
}

fn secrets() -> Vec<v1::Secret> {
    vec![v1::Secret { name: "password".into(), value: b"hunter2".to_vec() }]
}

fn failure(finished: &v1::Finished) -> (v1::FailureKind, String) {
    let outcome = finished.outcome.clone().unwrap();
    (outcome.failure(), outcome.message)
}

fn state(finished: &v1::Finished) -> v1::OutcomeState {
    finished.outcome.as_ref().unwrap().state()
}

#[tokio::test]
async fn a_job_runs_and_leaves_nothing() {
    let setup = Setup::new().await;
    let enrolled = std::mem::take(&mut setup.fake.state().enrolled);
    assert_eq!(enrolled[0], enrolled[1], "an answer that was lost is asked for alike");
    let agent = setup.start();
    let job = job(1, "say one hunter2 two\nstage middle\nsay three");
    setup.fake.assign(&job, secrets()).await;
    let finished = setup.fake.finished().await;
    assert_eq!(state(&finished), v1::OutcomeState::Succeeded);
    let log = setup.fake.sealed(job.lease).await;
    assert_eq!(String::from_utf8(log.bytes).unwrap(), "one ******* two\nthree\n");
    let stages: Vec<_> =
        log.stages.iter().map(|stage| (stage.name.as_str(), stage.offset)).collect();
    assert_eq!(stages, [("middle", 16)]);
    assert_eq!(finished.log_lengths["main"], 22);
    assert_eq!(setup.fake.state().started, [job.lease.to_string()]);
    assert!(setup.fake.state().bearers[0].starts_with("Bearer agt_"));
    setup.is_removed(job.lease).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_cut_is_survived_and_no_byte_is_sent_twice() {
    let setup = Setup::new().await;
    let agent = setup.start();
    let job = job(1, "say before\ngate\nsay after");
    setup.fake.assign(&job, vec![]).await;
    let lease = job.lease;
    let key = (lease.to_string(), "main".to_owned());
    setup
        .fake
        .until("some log", |state| state.logs.get(&key).is_some_and(|log| log.bytes.len() == 7))
        .await;
    setup.fake.cut();
    setup.fake.until("another Hello", |state| state.hellos.len() == 2).await;
    {
        let state = setup.fake.state();
        let [first, second] = &state.hellos[..] else { panic!() };
        assert_eq!(second.journal[0].state(), v1::LeaseState::Running);
        assert!(second.epoch > first.epoch);
        assert_eq!(second.instance, first.instance);
    }
    setup.words.gate.add_permits(1);
    let log = setup.fake.sealed(lease).await;
    assert_eq!((log.bytes.as_slice(), log.repeated), (&b"before\nafter\n"[..], 0));
    assert_eq!(setup.words.runs.load(Ordering::SeqCst), 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_long_log_arrives_whole_over_cuts_in_the_middle() {
    let setup = Setup::new().await;
    let agent = setup.start();
    let job = job(1, "flood 200\ngate\nflood 200");
    setup.fake.assign(&job, secrets()).await;
    let key = (job.lease.to_string(), "main".to_owned());
    let held = |state: &fake::State| state.logs.get(&key).map_or(0, |log| log.bytes.len());
    setup.fake.until("a part of the log", |state| held(state) > 3_000_000).await;
    setup.fake.cut();
    setup.words.gate.add_permits(1);
    setup.fake.until("more of the log", |state| held(state) > 14_000_000).await;
    setup.fake.cut();
    let log = setup.fake.sealed(job.lease).await;
    assert_eq!((log.bytes.len(), log.repeated), (400 * 60_001, 0));
    assert!(log.bytes.chunks(60_001).all(|line| line == &log.bytes[..60_001]));
    agent.stop().await;
}

#[tokio::test]
async fn a_server_that_holds_other_bytes_gets_nothing_more() {
    let setup = Setup::new().await;
    let job = job(1, "say one\ngate");
    let key = (job.lease.to_string(), "main".to_owned());
    let other = fake::Log { bytes: b"two".to_vec(), ..fake::Log::default() };
    setup.fake.state().logs.insert(key, other);
    let agent = setup.start();
    setup.words.gate.add_permits(1);
    setup.fake.assign(&job, vec![]).await;
    setup.fake.finished().await;
    // The upload is opened as soon as there is a byte; two heartbeats later it had its answer.
    let beats = setup.fake.state().heartbeats;
    setup.fake.until("heartbeats", |state| state.heartbeats > beats + 3).await;
    assert_eq!(setup.fake.log(job.lease).bytes, b"two");
    assert!(setup.folder(job.lease).exists(), "what the server lacks is kept");
    agent.stop().await;
}

#[tokio::test]
async fn a_log_without_a_byte_needs_no_upload() {
    let setup = Setup::new().await;
    let agent = setup.start();
    let (silent, staged) = (job(1, ""), job(2, "stage middle"));
    setup.fake.assign(&silent, vec![]).await;
    assert_eq!(setup.fake.finished().await.log_lengths["main"], 0);
    setup.is_removed(silent.lease).await;
    assert!(setup.fake.state().logs.is_empty());
    setup.fake.assign(&staged, vec![]).await;
    let log = setup.fake.sealed(staged.lease).await;
    assert_eq!(log.stages.len(), 1, "a stage is brought all the same");
    agent.stop().await;
}

/// A job that may have begun is never begun again, be its handle on the disk or not.
#[tokio::test]
async fn a_job_that_a_restart_of_the_machine_cut_off_fails() {
    let setup = Setup::new().await;
    let agent = setup.start();
    let job = job(1, "say before\ngate");
    setup.fake.assign(&job, vec![]).await;
    let key = (job.lease.to_string(), "main".to_owned());
    let said = |state: &fake::State| state.logs.get(&key).is_some_and(|log| log.bytes.len() == 7);
    setup.fake.until("some log", said).await;
    agent.stop().await;
    let record = br#"{"boot":"another"}"#;
    let mut journal =
        fs::OpenOptions::new().append(true).open(setup.config.data_dir.join("journal")).unwrap();
    let length = u32::try_from(record.len()).unwrap();
    journal.write_all(&length.to_le_bytes()).unwrap();
    journal.write_all(&crc32fast::hash(record).to_le_bytes()).unwrap();
    journal.write_all(record).unwrap();

    let agent = setup.start();
    let finished = setup.fake.finished().await;
    let text = format!("{finished:?}");
    assert!(text.contains("the machine was restarted while it held the job"), "{text}");
    assert_eq!(setup.words.runs.load(Ordering::SeqCst), 1);
    agent.stop().await;
}

#[tokio::test]
async fn another_process_adopts_the_job_and_masks_its_log() {
    let setup = Setup::new().await;
    let agent = setup.start();
    let job = job(1, "say before\nremember it\ngate");
    setup.fake.assign(&job, secrets()).await;
    let key = (job.lease.to_string(), "main".to_owned());
    setup
        .fake
        .until("some log", |state| state.logs.get(&key).is_some_and(|log| log.bytes.len() == 7))
        .await;
    agent.stop().await;
    assert!(setup.folder(job.lease).exists());

    setup.fake.state().secrets = secrets();
    let agent = setup.start();
    setup.fake.until("another Hello", |state| state.hellos.len() == 2).await;
    setup.words.gate.add_permits(1);
    let log = setup.fake.sealed(job.lease).await;
    assert_eq!(String::from_utf8(log.bytes).unwrap(), "before\nadopted it *******\n");
    assert_eq!(log.repeated, 0);
    assert_eq!(setup.words.adoptions.load(Ordering::SeqCst), 1);
    assert_eq!(state(&setup.fake.finished().await), v1::OutcomeState::Succeeded);
    setup.is_removed(job.lease).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_was_never_begun_begins_anew_and_what_ended_is_said_again() {
    let setup = Setup::new().await;
    let agent = setup.start();
    setup.fake.state().deaf = true;
    let ended = job(1, "say done");
    setup.fake.assign(&ended, vec![]).await;
    setup.fake.finished().await;
    let begun = job(2, "gate\nsay twice");
    setup.fake.assign(&begun, vec![]).await;
    setup.fake.until("both", |state| state.started.len() == 2).await;
    agent.stop().await;

    setup.fake.state().deaf = false;
    setup.words.gate.add_permits(1);
    let agent = setup.start();
    let lease = ended.lease.to_string();
    let said =
        |state: &fake::State| state.finished.iter().filter(|one| one.lease == lease).count() == 2;
    setup.fake.until("the result again", said).await;
    assert_eq!(setup.fake.sealed(begun.lease).await.bytes, b"twice\n");
    assert_eq!(setup.words.runs.load(Ordering::SeqCst), 3);
    setup.is_removed(ended.lease).await;
    setup.is_removed(begun.lease).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_cancelled_job_and_one_out_of_time_say_so() {
    let setup = Setup::new().await;
    let agent = setup.start();
    let cancelled = job(1, "hang");
    setup.fake.assign(&cancelled, vec![]).await;
    setup.fake.until("its start", |state| state.started.len() == 1).await;
    let lease = cancelled.lease.to_string();
    setup.fake.say(|_| Frame::Revoke(v1::Revoke { lease })).await;
    assert_eq!(state(&setup.fake.finished().await), v1::OutcomeState::Cancelled);

    let mut late = job(2, "hang");
    late.spec.timeouts.total_ms = 200;
    setup.fake.assign(&late, vec![]).await;
    setup.fake.until("two results", |state| state.finished.len() == 2).await;
    let (kind, message) = failure(&setup.fake.state().finished[1]);
    assert_eq!(kind, v1::FailureKind::Timeout);
    assert!(message.contains("timeouts.total"), "{message}");
    agent.stop().await;
}

#[tokio::test]
async fn a_draining_agent_refuses_work_ends_what_it_has_and_leaves() {
    let setup = Setup::new().await;
    let agent = setup.start();
    let first = job(1, "gate");
    setup.fake.assign(&first, vec![]).await;
    setup.fake.until("its start", |state| state.started.len() == 1).await;
    setup.fake.say(|_| Frame::Drain(v1::Drain {})).await;
    setup.fake.assign(&job(2, "say no"), vec![]).await;
    setup.fake.until("a refusal", |state| !state.refused.is_empty()).await;
    assert!(setup.fake.state().refused[0].reason.contains("leaving"));
    setup.words.gate.add_permits(1);
    tokio::time::timeout(Duration::from_secs(30), agent.task).await.unwrap().unwrap().unwrap();
    assert!(!setup.folder(first.lease).exists());
}

#[tokio::test]
async fn artifacts_are_uploaded_and_links_are_not_followed() {
    let setup = Setup::new().await;
    let secret = setup.config.data_dir.join("identity.json");
    let agent = setup.start();
    let mut job = job(1, &format!("write out.txt\nlink {}", secret.display()));
    job.spec.artifacts = vec!["*".into()];
    setup.fake.assign(&job, vec![]).await;
    let finished = setup.fake.finished().await;
    assert_eq!(state(&finished), v1::OutcomeState::Succeeded, "{finished:?}");
    let content = "out.txt".repeat(100);
    let [artifact] = &finished.artifacts[..] else { panic!("{finished:?}") };
    assert_eq!((artifact.name.as_str(), artifact.size), ("out.txt", 700));
    assert_eq!(artifact.sha256, sha256(content.as_bytes()));
    assert_eq!(setup.fake.state().blobs.len(), 1);

    let mut bomb = self::job(2, "write a.txt\nwrite b.txt");
    bomb.spec.artifacts = vec!["*.txt".into()];
    bomb.spec.resources.artifact_bytes = 800;
    setup.fake.assign(&bomb, vec![]).await;
    setup.fake.until("two results", |state| state.finished.len() == 2).await;
    let (kind, message) = failure(&setup.fake.state().finished[1]);
    assert_eq!(kind, v1::FailureKind::User);
    assert!(message.contains("resources.artifacts)"), "{message}");
    agent.stop().await;
}

#[tokio::test]
async fn inputs_are_placed_but_not_through_a_link_of_the_source() {
    let setup = Setup::new().await;
    let outside = tempfile::tempdir().unwrap();
    let mut builder = tar::Builder::new(vec![]);
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "out", outside.path()).unwrap();
    let mut file = tar::Header::new_gnu();
    file.set_size(2);
    file.set_mode(0o644);
    builder.append_data(&mut file, "src/a.txt", &b"a\n"[..]).unwrap();
    let archive = zstd::encode_all(&builder.into_inner().unwrap()[..], 1).unwrap();
    let source =
        Source::Archive { sha256: setup.fake.put_blob(&archive), size: archive.len() as u64 };
    let input = |name: &str, sha256: &str| Artifact {
        name: name.into(),
        size: 2,
        sha256: sha256.into(),
        mode: 0o644,
    };
    let blob = setup.fake.put_blob(b"b\n");
    let agent = setup.start();
    let mut good = job(1, "read src/a.txt\nread deps/b.txt");
    good.spec.source = Some(source.clone());
    good.inputs = vec![input("deps/b.txt", &blob)];
    setup.fake.assign(&good, vec![]).await;
    let log = setup.fake.sealed(good.lease).await;
    assert_eq!(String::from_utf8(log.bytes).unwrap(), "a\nb\n");

    let mut bad = job(2, "say no");
    bad.spec.source = Some(source);
    bad.inputs = vec![input("out/b.txt", &blob)];
    setup.fake.assign(&bad, vec![]).await;
    setup.fake.until("two results", |state| state.finished.len() == 2).await;
    let (kind, message) = failure(&setup.fake.state().finished[1]);
    assert_eq!(kind, v1::FailureKind::User, "{message}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    agent.stop().await;
}

fn git(dir: &Path, args: &[&str]) {
    let identity = [
        "-c",
        "user.name=Kiln",
        "-c",
        "user.email=kiln@example.org",
        "-c",
        "init.defaultBranch=main",
    ];
    let output = Command::new("git").args(identity).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_git_source_is_checked_out_and_a_missing_ref_is_the_users_fault() {
    let mut setup = Setup::new().await;
    setup.config.allow_local_git = true;
    let repo = tempfile::tempdir().unwrap();
    git(repo.path(), &["init", "-q"]);
    fs::File::create(repo.path().join("hello.txt")).unwrap().write_all(b"hello\n").unwrap();
    git(repo.path(), &["add", "."]);
    git(repo.path(), &["commit", "-qm", "First"]);
    let url = repo.path().to_str().unwrap().to_owned();
    let agent = setup.start();
    let mut good = job(1, "read hello.txt");
    good.spec.source =
        Some(Source::Git { url: url.clone(), r#ref: "main".into(), submodules: false });
    setup.fake.assign(&good, vec![]).await;
    let log = String::from_utf8(setup.fake.sealed(good.lease).await.bytes).unwrap();
    assert!(log.contains("checked out ") && log.ends_with("hello\n"), "{log}");

    let mut bad = job(2, "say no");
    bad.spec.source =
        Some(Source::Git { url: url.clone(), r#ref: "nowhere".into(), submodules: false });
    setup.fake.assign(&bad, vec![]).await;
    setup.fake.until("two results", |state| state.finished.len() == 2).await;
    let (kind, message) = failure(&setup.fake.state().finished[1]);
    assert_eq!(kind, v1::FailureKind::User, "{message}");
    assert!(message.contains(&url) && message.contains("nowhere"), "{message}");
    agent.stop().await;
}

#[tokio::test]
async fn submodules_are_checked_out_at_the_commit_that_is_pinned() {
    let mut setup = Setup::new().await;
    setup.config.allow_local_git = true;
    let folder = tempfile::tempdir().unwrap();
    let (main, part) = (folder.path().join("main"), folder.path().join("part"));
    let commit = |repo: &Path, file: &str, text: &str| {
        fs::write(repo.join(file), text).unwrap();
        git(repo, &["add", "."]);
        git(repo, &["commit", "-qm", text.trim()]);
    };
    for repo in [&main, &part] {
        fs::create_dir(repo).unwrap();
        git(repo, &["init", "-q"]);
    }
    commit(&part, "part.txt", "pinned\n");
    commit(&main, "main.txt", "main\n");
    // An address relative to that of the repository itself.
    git(
        &main,
        &["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../part", "sub"],
    );
    git(&main, &["commit", "-qm", "Add the part"]);
    commit(&part, "part.txt", "newer\n");

    let agent = setup.start();
    let mut job = job(1, "read sub/part.txt");
    let url = main.to_str().unwrap().to_owned();
    job.spec.source = Some(Source::Git { url, r#ref: String::new(), submodules: true });
    setup.fake.assign(&job, vec![]).await;
    let log = String::from_utf8(setup.fake.sealed(job.lease).await.bytes).unwrap();
    assert!(log.ends_with("pinned\n"), "{log}");
    agent.stop().await;
}

#[tokio::test]
async fn an_unknown_backend_is_the_machinerys_fault() {
    let setup = Setup::new().await;
    let agent = setup.start();
    let mut job = job(1, "say no");
    job.spec.backend = "elsewhere".into();
    setup.fake.assign(&job, vec![]).await;
    let finished = setup.fake.finished().await;
    assert_eq!(failure(&finished).0, v1::FailureKind::Infra);
    agent.stop().await;
}
