use kiln_core::{
    agent::{Load, Offer, Profile},
    build::BuildState,
    event::{Change, JobChange, Record},
    id::{BuildId, JobId, LeaseId, SessionId},
    job::Status,
    outcome::{FailureKind, Outcome, RetryPolicy},
    session::{Artifact, Assignment, Held, Report},
    spec::{
        BuildSpec, ConcurrencyGroup, Constraints, Container, JobSpec, Need, Network, PullPolicy,
        Resources, Source, Timeouts,
    },
};

use super::*;
use crate::v1;

macro_rules! an_id {
    ($text:literal) => {
        concat!($text, "_00000000000000000000000000000007").parse().unwrap()
    };
}

/// Every field differs from its default, so that one that is forgotten shows.
fn full_job() -> JobSpec {
    JobSpec {
        name: "test".into(),
        needs: vec![Need { job: "compile".into(), artifacts: true }],
        backend: "docker".into(),
        script: "make".into(),
        command: vec!["make".into(), "-j".into()],
        env: [("A".into(), "1".into())].into(),
        matrix: [("OS".into(), vec!["a".into(), "b".into()])].into(),
        allow_failure: true,
        retry: RetryPolicy { max_attempts: 2, on: FailureKind::ALL.into(), backoff_ms: 5 },
        timeouts: Timeouts { queue_ms: 1, total_ms: 2, stall_ms: 3 },
        constraints: Constraints {
            arch: "x86_64".into(),
            labels: [("zone".into(), "a".into()), ("ssd".into(), String::new())].into(),
            min_cpu_millis: 1,
            min_memory_bytes: 2,
            min_disk_bytes: 3,
        },
        resources: Resources {
            cpu_millis: 1,
            memory_bytes: 2,
            pids: 3,
            log_bytes: 4,
            artifact_bytes: 5,
        },
        container: Some(Container {
            image: "debian:bookworm".into(),
            pull: PullPolicy::Never,
            network: Network::None,
            read_only: true,
            tmpfs: [("/tmp".into(), 7)].into(),
            user: "1000:1000".into(),
            cap_drop: vec!["ALL".into()],
            allow_new_privileges: true,
        }),
        concurrency: Some(ConcurrencyGroup { name: "deploy".into(), limit: 2 }),
        priority: -3,
        artifacts: vec!["out/**".into()],
        source: Some(Source::Archive { sha256: "0".repeat(64), size: 9 }),
        no_source: true,
        secrets: vec!["TOKEN".into()],
    }
}

fn fields<T: std::fmt::Debug>(read: Read<T>) -> Vec<String> {
    read.unwrap_err().into_iter().map(|violation| violation.field).collect()
}

#[test]
fn a_specification_round_trips() {
    let git = Source::Git { url: "https://x/y".into(), r#ref: "main".into(), submodules: true };
    let spec = BuildSpec {
        title: "t".into(),
        source: Some(git),
        jobs: vec![full_job()],
        priority: 4,
        annotations: [("k".into(), "v".into())].into(),
    };
    assert_eq!(build_spec("spec", spec.clone().into()), Ok(spec));
}

#[test]
fn zero_is_the_default() {
    let job = v1::JobSpec {
        retry: Some(v1::RetryPolicy::default()),
        timeouts: Some(v1::Timeouts { total_ms: 7, ..Default::default() }),
        resources: Some(v1::Resources::default()),
        container: Some(v1::Container::default()),
        concurrency: Some(v1::ConcurrencyGroup { name: "g".into(), limit: 0 }),
        ..v1::JobSpec::default()
    };
    let job = job_spec("job", job).unwrap();
    assert_eq!(job.retry, RetryPolicy::default());
    assert_eq!(job.timeouts, Timeouts { total_ms: 7, ..Timeouts::default() });
    assert_eq!(job.resources, Resources::default());
    assert_eq!(job.container, Some(Container::default()));
    assert_eq!(job.concurrency.unwrap().limit, 1);
    assert_eq!(job_spec("job", v1::JobSpec::default()), Ok(JobSpec::default()));
}

#[test]
fn a_policy_that_never_retries_stays_one() {
    let never = RetryPolicy { on: [].into(), ..RetryPolicy::default() };
    let job = JobSpec { retry: never, ..JobSpec::default() };
    let read = job_spec("job", job.into()).unwrap();
    assert_eq!(read.retry.next(FailureKind::Infra, 1), None);
}

#[test]
fn what_is_wrong_with_a_specification_is_named() {
    let label = v1::LabelMatch { key: "a".into(), value: String::new() };
    let job = v1::JobSpec {
        retry: Some(v1::RetryPolicy { max_attempts: -1, on: vec![99, 0], backoff_ms: -1 }),
        timeouts: Some(v1::Timeouts { queue_ms: 0, total_ms: -1, stall_ms: i64::MIN }),
        constraints: Some(v1::Constraints {
            labels: vec![label.clone(), label],
            min_disk_bytes: -1,
            ..Default::default()
        }),
        resources: Some(v1::Resources { pids: -1, ..Default::default() }),
        container: Some(v1::Container {
            pull: 9,
            network: -9,
            tmpfs: [("/t".into(), -1)].into(),
            ..Default::default()
        }),
        concurrency: Some(v1::ConcurrencyGroup { name: "g".into(), limit: -1 }),
        source: Some(v1::Source { kind: None }),
        ..v1::JobSpec::default()
    };
    let spec = v1::BuildSpec { jobs: vec![v1::JobSpec::default(), job], ..Default::default() };
    let mut found = fields(build_spec("spec", spec));
    found.sort();
    let wanted = [
        "concurrency.limit",
        "constraints.labels[1].key",
        "constraints.min_disk_bytes",
        "container.network",
        "container.pull",
        "container.tmpfs[\"/t\"]",
        "resources.pids",
        "retry.backoff_ms",
        "retry.max_attempts",
        "retry.on[0]",
        "retry.on[1]",
        "source",
        "timeouts.stall_ms",
        "timeouts.total_ms",
    ];
    assert_eq!(found, wanted.map(|field| format!("spec.jobs[1].{field}")));
}

#[test]
fn outcomes_round_trip_and_must_be_set() {
    let failed = |kind| Outcome::Failed { kind, exit_code: Some(3), message: "m".into() };
    let all = FailureKind::ALL.into_iter().map(failed);
    for end in all.chain([Outcome::Succeeded, Outcome::cancelled("c")]) {
        assert_eq!(outcome("o", end.clone().into()), Ok(end));
    }
    assert_eq!(fields(outcome("o", v1::Outcome::default())), ["o.state"]);
    let kindless = v1::Outcome { state: v1::OutcomeState::Failed.into(), ..Default::default() };
    assert_eq!(fields(outcome("o", kindless)), ["o.failure"]);
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let long = Outcome::cancelled("ä".repeat(5_000));
    let Ok(Outcome::Cancelled { message }) = outcome("o", long.into()) else { panic!() };
    assert!(message.len() < 4_010 && message.ends_with("ä…"));
}

#[test]
fn an_artifact_stays_inside_the_workspace() {
    let good = Artifact { name: "out/a.txt".into(), size: 3, sha256: "a".repeat(64), mode: 0o644 };
    assert_eq!(artifact("a", good.clone().into()), Ok(good.clone()));
    for name in ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a\0b"] {
        let bad = Artifact { name: name.into(), ..good.clone() };
        assert_eq!(fields(artifact("a", bad.into())), ["a.name"], "{name:?}");
    }
    let bad = v1::Artifact { size: -1, sha256: "A".repeat(64), ..good.into() };
    assert_eq!(fields(artifact("a", bad)), ["a.sha256", "a.size"]);
}

#[test]
fn profiles_and_loads_round_trip() {
    let offer = Offer {
        slots: 4,
        features: ["tmpfs".into()].into(),
        operations: ["script".into()].into(),
        facts: [("cgroup".into(), "v2".into())].into(),
        unavailable: None,
    };
    let broken = Offer { unavailable: Some("no engine".into()), ..Offer::default() };
    let machine = Profile {
        arch: "x86_64".into(),
        os: "linux".into(),
        version: "1".into(),
        host: "h".into(),
        labels: [("zone".into(), "a".into())].into(),
        cpu_millis: 2_000,
        memory_bytes: 1 << 40,
        backends: [("shell".into(), offer), ("docker".into(), broken)].into(),
    };
    assert_eq!(profile("p", machine.clone().into()), Ok(machine.clone()));
    let fare = Load { load_millis: 1, memory_available_bytes: 2, disk_available_bytes: 3 };
    assert_eq!(load("b", &heartbeat(fare, None)), Ok(fare));

    let mut twice: v1::AgentProfile = machine.into();
    twice.backends = vec![twice.backends[0].clone(), twice.backends[0].clone()];
    twice.cpu_millis = -1;
    assert_eq!(fields(profile("p", twice)), ["p.backends[1].backend", "p.cpu_millis"]);
}

#[test]
fn leases_round_trip_through_their_frames() {
    let session: SessionId = an_id!("ses");
    let file = Artifact { name: "a".into(), size: 1, sha256: "0".repeat(64), mode: 0o755 };
    let given = Assignment {
        lease: an_id!("lse"),
        job: an_id!("job"),
        build: an_id!("bld"),
        project: "default".into(),
        attempt: 2,
        spec: full_job(),
        inputs: vec![file.clone()],
        exclusive: true,
        trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap()),
    };
    assert_eq!(assignment("a", assign(session, given.clone(), &[])), Ok((session, given.clone())));
    assert_eq!(
        fields(assignment("assign", v1::Assign::default())),
        ["session", "lease", "job", "build", "spec"].map(|field| format!("assign.{field}"))
    );

    let end = Report {
        outcome: Outcome::Succeeded,
        artifacts: vec![file],
        log_lengths: [("main".into(), 12)].into(),
    };
    assert_eq!(report("f", finished(given.lease, end.clone())), Ok((given.lease, end)));
    let bad = v1::Finished { log_lengths: [("a/b".into(), -1)].into(), ..Default::default() };
    assert_eq!(
        fields(report("", bad)),
        ["lease", "outcome", "log_lengths[\"a/b\"]", "log_lengths[\"a/b\"]"]
    );
}

#[test]
fn a_journal_names_each_lease_once() {
    let lease: LeaseId = an_id!("lse");
    for state in [Held::Taken, Held::Running, Held::Finished] {
        let entries = vec![journal_entry(lease, state)];
        assert_eq!(journal("journal", entries), Ok(vec![(lease, state)]));
    }
    let twice = vec![journal_entry(lease, Held::Taken), journal_entry(lease, Held::Running)];
    assert_eq!(fields(journal("journal", twice)), ["journal[1]"]);
    let empty = vec![v1::JournalEntry::default()];
    assert_eq!(fields(journal("journal", empty)), ["journal[0].lease", "journal[0].state"]);
}

#[test]
fn states_round_trip() {
    for status in Status::ALL {
        assert_eq!(job_status("s", v1::JobState::from(status).into()), Ok(status));
    }
    for state in BuildState::ALL {
        assert_eq!(build_state("s", v1::BuildState::from(state).into()), Ok(state));
    }
    assert_eq!(fields(job_status("s", 0)), ["s"]);
    assert_eq!(fields(build_state("s", 77)), ["s"]);
}

#[test]
fn an_event_tells_all_of_a_change() {
    let (build, job): (BuildId, JobId) = (an_id!("bld"), an_id!("job"));
    let lease: LeaseId = an_id!("lse");
    let change = JobChange {
        job,
        name: "test".into(),
        status: Status::Failed,
        cancelling: true,
        round: 2,
        attempt: 3,
        lease: Some(lease),
        agent: None,
        outcome: Some(Outcome::failed(FailureKind::Oom, "m")),
        reason: "why".into(),
    };
    let record = Record { build, number: 9, at: 11, change: Change::Job(change) };
    let message = event(record, Some("worker".into()));
    assert_eq!((message.build, message.number, message.time_ms), (build.to_string(), 9, 11));
    let Some(v1::event::Change::Job(changed)) = message.change else { panic!() };
    let wanted = v1::JobChanged {
        job: job.to_string(),
        name: "test".into(),
        state: v1::JobState::Failed.into(),
        cancelling: true,
        round: 2,
        attempt: 3,
        lease: lease.to_string(),
        agent: "worker".into(),
        outcome: Some(Outcome::failed(FailureKind::Oom, "m").into()),
        reason: "why".into(),
    };
    assert_eq!(changed, wanted);
}

#[test]
fn a_wrong_id_names_its_field() {
    let error = id::<BuildId>("build", "job_7").unwrap_err();
    assert_eq!(error.field, "build");
    assert!(error.message.contains("bld_"), "{error:?}");
    assert_eq!(optional_id::<JobId>("job", ""), Ok(None));
}
