//! Every method × every kind of caller × own and foreign objects: what is answered, and that a refused call changes
//! nothing. The methods come from the protocol's descriptors: a new one without a line here fails.

mod cast;
mod probes;

use std::collections::BTreeSet;

use prost::Message;
use tonic::Code;

use cast::Cast;

/// Callers, in the order of the columns below. `@` is bound to the project of the own objects.
const CALLERS: [&str; 13] = [
    "none",
    "enroller",
    "reader",
    "submitter",
    "admin",
    "enroller@",
    "reader@",
    "submitter@",
    "admin@",
    "agent",
    "expired",
    "revoked",
    "evicted",
];

/// O: done, U: unauthenticated, D: permission denied, N: not found, I: invalid argument (the call was let in, and what
/// it said is wrong). One letter: for own and foreign objects alike; two: for the own, then for the foreign one.
const TABLE: &[(&str, &str)] = &[
    ("AdminService/CreateToken", "U D D D O  D D D D  D  U U U"),
    ("AdminService/DrainAgent", "U D D D O  D D D D  D  U U U"),
    ("AdminService/EvictAgent", "U D D D O  D D D D  D  U U U"),
    ("AdminService/GetQueue", "U D O O O  D D D D  D  U U U"),
    ("AdminService/ListAgents", "U D O O O  D D D D  D  U U U"),
    ("AdminService/ListAudit", "U D D D O  D D D D  D  U U U"),
    ("AdminService/ListAuthorities", "U D O O O  D D D D  D  U U U"),
    ("AdminService/ListTokens", "U D D D O  D D D D  D  U U U"),
    ("AdminService/PauseAgent", "U D D D O  D D D D  D  U U U"),
    ("AdminService/ResumeAgent", "U D D D O  D D D D  D  U U U"),
    ("AdminService/RevokeToken", "U D D D O  D D D D  D  U U U"),
    ("AdminService/RotateAuthority", "U D D D O  D D D D  D  U U U"),
    ("AdminService/RotateToken", "U D D D O  D D D D  D  U U U"),
    ("AgentService/CertifyAgent", "U D D D D  D D D D  I  U U U"),
    ("AgentService/EnrollAgent", "U O D D D  D D D D  U  U U U"),
    ("AgentService/Session", "U D D D D  D D D D  I  U U U"),
    ("ArtifactService/GetArtifact", "U D O O O  D ON ON ON  ON  U U U"),
    ("ArtifactService/ListArtifacts", "U D O O O  D ON ON ON  D  U U U"),
    ("ArtifactService/PutArtifact", "U D D O O  D D O O  ON  U U U"),
    ("BuildService/CancelBuild", "U D D O O  D D ON ON  D  U U U"),
    ("BuildService/ExplainJob", "U D O O O  D ON ON ON  D  U U U"),
    ("BuildService/GetBuild", "U D O O O  D ON ON ON  D  U U U"),
    ("BuildService/ListBuilds", "U D O O O  D ON ON ON  D  U U U"),
    ("BuildService/RetryBuild", "U D D O O  D D ON ON  D  U U U"),
    ("BuildService/SubmitBuild", "U D D O O  D D ON ON  D  U U U"),
    ("BuildService/WatchBuild", "U D O O O  D ON ON ON  D  U U U"),
    ("LogService/FollowLog", "U D O O O  D ON ON ON  D  U U U"),
    ("LogService/PushLog", "U D D D D  D D D D  ON  U U U"),
    ("LogService/ReadLog", "U D O O O  D ON ON ON  D  U U U"),
    ("ProjectService/CreateProject", "U D D D O  D D D D  D  U U U"),
    ("ProjectService/GetProject", "U D O O O  D ON ON ON  D  U U U"),
    ("ProjectService/ListProjects", "U D O O O  D O O O  D  U U U"),
    ("ProjectService/UpdateProject", "U D D D O  D D D ON  D  U U U"),
    ("SecretService/DeleteSecret", "U D D D O  D D D ON  D  U U U"),
    ("SecretService/ListSecrets", "U D D O O  D D ON ON  D  U U U"),
    ("SecretService/ReencryptSecrets", "U D D D O  D D D D  D  U U U"),
    ("SecretService/SetSecret", "U D D D O  D D D ON  D  U U U"),
];

/// Methods as the protocol declares them.
fn declared() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(kiln_proto::DESCRIPTORS).unwrap();
    let services = set.file.iter().flat_map(|file| &file.service);
    let methods = services.flat_map(|service| {
        service.method.iter().map(|method| format!("{}/{}", service.name(), method.name()))
    });
    methods.collect()
}

fn letter(code: Code) -> char {
    match code {
        Code::Ok => 'O',
        Code::Unauthenticated => 'U',
        Code::PermissionDenied => 'D',
        Code::NotFound => 'N',
        Code::InvalidArgument => 'I',
        _ => '?',
    }
}

#[test]
fn every_method_has_its_line() {
    let listed: BTreeSet<String> = TABLE.iter().map(|(method, _)| (*method).to_owned()).collect();
    assert_eq!(listed, declared());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_caller_gets_what_the_table_says_and_a_refused_call_changes_nothing() {
    let cast = Cast::new().await;
    let mut wrong = vec![];
    for (method, line) in TABLE {
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells.len(), CALLERS.len(), "{method}");
        for (caller, cell) in CALLERS.iter().zip(cells) {
            let letters: Vec<char> = cell.chars().collect();
            for (whose, wanted) in [letters[0], *letters.last().unwrap()].into_iter().enumerate() {
                let things = cast.things(method, whose).await;
                let secret = &cast.secrets[caller];
                let before = cast.rows();
                let answer = probes::call(&cast, method, caller, secret, &things).await;
                let code = answer.as_ref().map_or_else(tonic::Status::code, |()| Code::Ok);
                let whose = ["own", "foreign"][whose];
                if letter(code) != wanted {
                    wrong
                        .push(format!("{method} by {caller} on {whose}: {answer:?}, not {wanted}"));
                }
                if wanted != 'O' && cast.rows() != before {
                    wrong.push(format!(
                        "{method} by {caller} on {whose} was refused and changed rows"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_says_nothing_of_the_lease_of_another_agent() {
    use kiln_proto::v1::{self, session_request::Frame};
    let mut cast = Cast::new().await;
    let lease = cast.things[1].lease.clone();
    let job = |jobs: Vec<v1::Job>| jobs.into_iter().find(|job| job.lease == lease).unwrap();
    let before = job(cast.world.build(&cast.things[1].build).await.1);
    let link = &mut cast.links[0];
    let said = [
        Frame::Started(v1::Started { lease: lease.clone() }),
        Frame::Refused(v1::Refused { lease: lease.clone(), reason: "mine now".into() }),
        crate::world::finished(&lease, v1::OutcomeState::Failed),
        crate::world::finished("lse_00000000000000000000000000000007", v1::OutcomeState::Failed),
    ];
    for frame in said {
        link.say(frame).await;
        let (_, acknowledged) = link.answered().await;
        assert!(!acknowledged, "a foreign lease is as one that does not exist");
    }
    // Nor does a Hello that lists it.
    let mut hello = cast.agents[0].hello("one", &[(lease.as_str(), v1::LeaseState::Running)]);
    hello.profile = Some(crate::world::profile(1));
    let again = cast.agents[0].greet(hello).await;
    assert_eq!(again.welcome.abandon, std::slice::from_ref(&lease));
    assert_eq!(job(cast.world.build(&cast.things[1].build).await.1), before);
}
