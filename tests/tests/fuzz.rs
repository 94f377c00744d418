//! Inputs that nobody would send, at the places where bytes become something: submissions, and frames of a session in
//! both directions. `make fuzz` runs more of them, and more cases of the property tests: appends to a log are one.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use kiln_agent::lease::{Input as AgentInput, Leases, Output};
use kiln_core::{
    build::plan,
    id::{LeaseId, SessionId},
    session::{Input, Reconciled, Session},
};
use kiln_proto::{convert, v1};
use kiln_tests::fuzz::fuzz;
use prost::Message;
use uuid::Uuid;

const MAX_JOBS: usize = 10_000;

fn lease(n: u128) -> String {
    LeaseId::from_uuid(Uuid::from_u128(n)).to_string()
}

fn job(name: &str, needs: &[&str]) -> v1::JobSpec {
    let need = |job: &&str| v1::Need { job: (*job).to_owned(), artifacts: true };
    v1::JobSpec {
        name: name.into(),
        backend: "shell".into(),
        script: "make".into(),
        needs: needs.iter().map(need).collect(),
        env: [("A".to_owned(), "b".to_owned())].into(),
        artifacts: vec!["out/*".into()],
        timeouts: Some(v1::Timeouts { total_ms: 60_000, ..Default::default() }),
        resources: Some(v1::Resources { cpu_millis: 1_000, ..Default::default() }),
        constraints: Some(v1::Constraints { arch: "x86_64".into(), ..Default::default() }),
        container: Some(v1::Container { image: "debian:12".into(), ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn a_submission_is_refused_or_makes_sense() {
    let source = v1::source::Kind::Git(v1::GitSource {
        url: "https://git.example/a.git".into(),
        r#ref: "main".into(),
        submodules: true,
    });
    let spec = v1::BuildSpec {
        title: "a build".into(),
        source: Some(v1::Source { kind: Some(source) }),
        jobs: vec![job("a", &[]), job("b", &["a"]), job("c", &["a", "b"])],
        annotations: [("k".to_owned(), "v".to_owned())].into(),
        ..Default::default()
    };
    fuzz("submission", vec![spec.encode_to_vec()], |bytes| {
        let Ok(spec) = v1::BuildSpec::decode(bytes) else { return };
        let read = convert::build_spec("spec", spec).and_then(plan);
        match read {
            Ok(plan) => assert!((1..=MAX_JOBS).contains(&plan.jobs.len())),
            Err(found) => {
                assert!(!found.is_empty(), "refused without a reason");
                assert!(found.iter().all(|wrong| !wrong.message.is_empty()), "{found:?}");
            }
        }
    });
}

/// Messages one behind the other, each with its length.
fn frames<T: Message>(frames: &[T]) -> Vec<u8> {
    frames.iter().flat_map(Message::encode_length_delimited_to_vec).collect()
}

/// Those that can be read of them.
fn read<T: Message + Default>(mut bytes: &[u8]) -> Vec<T> {
    let mut read = vec![];
    while let (false, Ok(frame)) = (bytes.is_empty(), T::decode_length_delimited(&mut bytes)) {
        read.push(frame);
    }
    read
}

#[test]
fn frames_of_an_agent_never_break_its_session() {
    use v1::session_request::Frame;
    let outcome = v1::Outcome { state: v1::OutcomeState::Succeeded.into(), ..Default::default() };
    let artifact =
        v1::Artifact { name: "out/a".into(), size: 1, sha256: "0".repeat(64), mode: 0o644 };
    let entry = v1::JournalEntry { lease: lease(1), state: v1::LeaseState::Running.into() };
    let seeds = [
        Frame::Hello(v1::Hello {
            instance: "i".into(),
            epoch: 1,
            journal: vec![entry],
            ..Default::default()
        }),
        Frame::Heartbeat(v1::Heartbeat { load_millis: 5, ..Default::default() }),
        Frame::Started(v1::Started { lease: lease(1) }),
        Frame::Refused(v1::Refused { lease: lease(2), reason: "full".into() }),
        Frame::Finished(v1::Finished {
            lease: lease(1),
            outcome: Some(outcome),
            artifacts: vec![artifact],
            log_lengths: [("main".to_owned(), 5)].into(),
        }),
    ]
    .map(|frame| v1::SessionRequest { frame: Some(frame) });
    fuzz("session", vec![frames(&seeds)], |bytes| {
        let id = SessionId::from_uuid(Uuid::from_u128(1));
        let mut session = Session::open(id, &Reconciled::default());
        session
            .apply(Input::Given((1..=3).map(|n| LeaseId::from_uuid(Uuid::from_u128(n))).collect()));
        for frame in read::<v1::SessionRequest>(bytes).into_iter().filter_map(|frame| frame.frame) {
            let input = match frame {
                Frame::Hello(hello) => {
                    // A journal is a list of leases, each once, or it is refused.
                    let said = hello.journal.len();
                    let read = convert::journal("hello.journal", hello.journal);
                    assert!(read.is_ok_and(|read| read.len() == said) || said > 0);
                    continue;
                }
                Frame::Heartbeat(beat) => {
                    let profile = beat.profile.clone();
                    let _any = profile.map(|profile| convert::profile("profile", profile));
                    convert::load("heartbeat", &beat).ok().map(|_| Input::Heartbeat)
                }
                Frame::Started(started) => started.lease.parse().ok().map(Input::Started),
                Frame::Refused(refused) => {
                    refused.lease.parse().ok().map(|lease| Input::Refused(lease, refused.reason))
                }
                Frame::Finished(finished) => {
                    let read = convert::report("finished", finished).ok();
                    read.map(|(lease, report)| Input::Finished(lease, report))
                }
            };
            if let Some(input) = input {
                session.apply(input);
            }
        }
        // What it says is about the leases that it knows, whatever it heard.
        assert!(session.leases().count() <= 3);
        assert!(session.take().len() <= 3 * 3 + 2);
    });
}

#[test]
fn words_of_a_server_never_break_an_agent() {
    use v1::session_response::Frame;
    let session = SessionId::from_uuid(Uuid::from_u128(1));
    let assign = v1::Assign {
        session: session.to_string(),
        lease: lease(1),
        job: format!("job_{:032x}", 1),
        build: format!("bld_{:032x}", 1),
        project: "default".into(),
        attempt: 1,
        spec: Some(job("a", &[])),
        ..Default::default()
    };
    let seeds = [
        Frame::Assign(assign),
        Frame::Revoke(v1::Revoke { lease: lease(1) }),
        Frame::Abandon(v1::Abandon { lease: lease(1) }),
        Frame::Ack(v1::Ack { lease: lease(1) }),
    ]
    .map(|frame| v1::SessionResponse { frame: Some(frame) });
    fuzz("words", vec![frames(&seeds)], |bytes| {
        let mut leases = Leases::default();
        let welcome =
            AgentInput::Welcome { session, grace_ms: 60_000, keep: vec![], abandon: vec![] };
        leases.apply(welcome, 0);
        let mut running = std::collections::BTreeSet::new();
        for frame in read::<v1::SessionResponse>(bytes).into_iter().filter_map(|frame| frame.frame)
        {
            let input = match frame {
                Frame::Assign(assign) => {
                    convert::assignment("assign", assign).ok().map(|(session, assignment)| {
                        AgentInput::Assign { session, assignment: Box::new(assignment) }
                    })
                }
                Frame::Ack(ack) => ack.lease.parse().ok().map(AgentInput::Ack),
                Frame::Revoke(revoke) => revoke.lease.parse().ok().map(AgentInput::Revoke),
                Frame::Abandon(abandon) => abandon.lease.parse().ok().map(AgentInput::Abandon),
                Frame::Welcome(_) | Frame::Drain(_) | Frame::Beat(_) => None,
            };
            for output in input.into_iter().flat_map(|input| leases.apply(input, 0)) {
                match output {
                    Output::Run(job) => assert!(running.insert(job.lease), "it runs already"),
                    Output::Remove(lease) => drop(running.remove(&lease)),
                    _ => {}
                }
            }
        }
        assert_eq!(leases.journal().len(), running.len(), "what runs is in the journal");
    });
}
