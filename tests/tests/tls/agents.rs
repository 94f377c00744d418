//! Agents: each has a certificate of its own, and is nobody without it.

use std::{fs, time::Duration};

use kiln_sdk::{
    Client, Identity, Options,
    v1::{self, session_request::Frame},
};
use serde_json::Value;
use tonic::{Code, Request};

use crate::{
    farm::{Farm, PATIENCE, failed, succeeded},
    process::until,
};

const TLS: (&str, &str) = ("KILN_TLS_ENABLED", "true");
/// Short enough to see it end.
const SHORT: (&str, &str) = ("KILN_TLS_AGENT_CERTIFICATE_MS", "6000");

/// The credential of an agent's folder, its key, and its certificate.
fn papers(farm: &Farm, name: &str) -> (String, Identity) {
    let read = |file: &str| -> Value {
        serde_json::from_slice(&fs::read(farm.path(name).join(file)).unwrap()).unwrap()
    };
    let (identity, certificate) = (read("identity.json"), read("certificate.json"));
    let text = |value: &Value, key: &str| value[key].as_str().unwrap().to_owned();
    let id = text(&identity, "agent").replace('-', "");
    let bearer = format!("agt_{id}.{}", text(&identity, "credential"));
    let key_pem = text(&identity, "key_pem");
    (bearer, Identity { certificate_pem: text(&certificate, "pem"), key_pem })
}

/// What the server says to a Session and to a PushLog of who has this credential and this certificate.
fn asked(farm: &Farm, bearer: &str, identity: Option<&Identity>) -> [(Code, Option<String>); 2] {
    let mut options = Options::new(&farm.url).token(bearer);
    options.trust.ca_pem = Some(fs::read(farm.ca_file()).unwrap());
    options.trust.identity = identity.cloned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::lazy(options).unwrap();
        let told = |status: tonic::Status| {
            let error = kiln_sdk::Error::from(status);
            (error.code(), error.reason().map(str::to_owned))
        };
        let beat = Frame::Heartbeat(v1::Heartbeat::default());
        let frames = tokio_stream::iter([v1::SessionRequest { frame: Some(beat) }]);
        let session = match client.agents().session(Request::new(frames)).await {
            Ok(answer) => answer.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        let chunks = tokio_stream::iter([v1::PushLogRequest::default()]);
        let push = match client.log_service().push_log(Request::new(chunks)).await {
            Ok(answer) => answer.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        [told(session.unwrap_err()), told(push.unwrap_err())]
    })
}

fn is_refused(answers: &[(Code, Option<String>)], reason: &str) {
    for answer in answers {
        assert_eq!(answer, &(Code::Unauthenticated, Some(reason.to_owned())));
    }
}

/// Waits until the agent has this state.
fn state(farm: &Farm, name: &str, wanted: &str) {
    until(&format!("{name} {wanted}"), PATIENCE, || {
        let all = succeeded(farm.trusting(&["agents", "list", "--output", "json"]));
        let all: Value = serde_json::from_str(&all).unwrap();
        let one = all["agents"].as_array().unwrap().iter().find(|agent| agent["name"] == name)?;
        (one["state"] == wanted).then_some(())
    });
}

#[test]
fn an_agent_is_who_has_the_credential_and_its_own_certificate() {
    use std::os::unix::fs::PermissionsExt;
    let mut farm = Farm::start(&[TLS]);
    for name in ["one", "two"] {
        let token = farm.enroll_token(name);
        let mut enroll = farm.command(&["agent", "enroll", "--name", name, "--enroll-token-file"]);
        enroll.arg(token).arg("--data").arg(farm.path(name));
        enroll.env("KILN_SERVER", &farm.url).args(["--ca-fingerprint", &farm.fingerprint()]);
        succeeded(enroll);
        let mode = fs::metadata(farm.path(name).join("identity.json")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "it holds the key");
    }
    let ((bearer, own), (_, other)) = (papers(&farm, "one"), papers(&farm, "two"));
    is_refused(&asked(&farm, &bearer, None), "AGENT_CERTIFICATE");
    is_refused(&asked(&farm, &bearer, Some(&other)), "AGENT_CERTIFICATE");
    let [(session, _), (push, _)] = asked(&farm, &bearer, Some(&own));
    assert_eq!([session, push], [Code::InvalidArgument; 2], "it is heard, and says nonsense");

    // One of an authority that the server has never heard of is refused before anything is said.
    let stranger = rcgen::generate_simple_self_signed(["one".to_owned()]).unwrap();
    let stranger = Identity {
        certificate_pem: stranger.cert.pem(),
        key_pem: stranger.signing_key.serialize_pem(),
    };
    for (code, reason) in asked(&farm, &bearer, Some(&stranger)) {
        // The end of the connection may be noticed before the reason that the server gave for it.
        let refused = [Code::FailedPrecondition, Code::Cancelled, Code::Unavailable, Code::Unknown];
        assert!(refused.contains(&code) && reason.is_none(), "{code:?} {reason:?}");
    }

    farm.start_agent("one", None);
    assert!(farm.build("with a certificate").contains("with a certificate"));
    succeeded(farm.trusting(&["agents", "evict", "one"]));
    let ended = farm.agent.as_mut().unwrap().wait(PATIENCE);
    assert_eq!(ended.code(), Some(5), "evicted");
    is_refused(&asked(&farm, &bearer, Some(&own)), "AGENT_EVICTED");
}

#[test]
fn a_certificate_is_renewed_before_it_ends_and_builds_go_on() {
    let mut farm = Farm::start(&[TLS, SHORT]);
    let token = farm.enroll_token("worker");
    farm.start_agent("worker", Some(&token));
    assert!(farm.build("first").contains("first"));
    let (bearer, first) = papers(&farm, "worker");
    let renewed = until("another certificate", PATIENCE, || {
        let (_, now) = papers(&farm, "worker");
        (now != first).then_some(now)
    });
    assert_eq!(renewed.key_pem, first.key_pem, "of the same key");
    until("the end of the first one", PATIENCE, || {
        std::thread::sleep(Duration::from_secs(1));
        let refused = |(code, _)| code == Code::FailedPrecondition;
        asked(&farm, &bearer, Some(&first)).into_iter().all(refused).then_some(())
    });
    assert!(farm.build("later").contains("later"));
    // One that was away for too long has lost the certificate, but neither its credential nor its key.
    assert!(farm.agent.take().unwrap().terminate(PATIENCE).success());
    std::thread::sleep(Duration::from_secs(7));
    farm.start_agent("worker", None);
    assert!(farm.build("back").contains("back"));
}

#[test]
fn a_farm_that_turns_tls_on_keeps_its_agents() {
    let mut farm = Farm::start(&[]);
    let token = farm.path("plain.token");
    let made = farm.admin(&["token", "create", "plain", "--role", "enroller", "-q"]);
    fs::write(&token, succeeded(made)).unwrap();
    let mut enroll = farm.command(&["agent", "enroll", "--name", "worker", "--enroll-token-file"]);
    enroll.arg(&token).arg("--data").arg(farm.path("worker")).env("KILN_SERVER", &farm.url);
    succeeded(enroll);
    farm.restart_server(&[TLS]);
    farm.start_agent("worker", None);
    assert!(farm.build("encrypted now").contains("encrypted now"));
}

#[test]
fn a_new_authority_takes_over_while_the_old_one_is_trusted() {
    let mut farm = Farm::start(&[TLS]);
    let old = fs::read(farm.ca_file()).unwrap();
    fs::write(farm.path("old.pem"), &old).unwrap();
    let pin = farm.fingerprint();
    let token = farm.enroll_token("worker");
    farm.start_agent("worker", Some(&token));
    state(&farm, "worker", "online");
    let (_, before) = papers(&farm, "worker");

    let shown = succeeded(farm.trusting(&["ca", "rotate", "--grace", "1h"]));
    assert_eq!(shown.matches("sha256:").count(), 2, "{shown}");
    until("both in the file", PATIENCE, || {
        let now = fs::read_to_string(farm.ca_file()).unwrap();
        (now.matches("CERTIFICATE").count() == 4).then_some(())
    });
    let exported = succeeded(farm.trusting(&["ca", "export"]));
    assert_eq!(exported, fs::read_to_string(farm.ca_file()).unwrap());
    // Who knows the old one alone, by file or fingerprint, is led to the new one.
    for trust in [["--ca-file", farm.path("old.pem").to_str().unwrap()], ["--ca-fingerprint", &pin]]
    {
        let mut list = farm.admin(&["list"]);
        list.args(trust);
        succeeded(list);
    }
    assert!(farm.build("in between").contains("in between"));

    // At once: what the old one signed is worth nothing, and agents have the same key certified by the new one.
    succeeded(farm.trusting(&["ca", "rotate", "--now"]));
    until("the newest alone", PATIENCE, || {
        let now = fs::read_to_string(farm.ca_file()).unwrap();
        (now.matches("CERTIFICATE").count() == 2).then_some(())
    });
    let mut list = farm.admin(&["list", "--ca-file"]);
    list.arg(farm.path("old.pem"));
    assert!(failed(list).contains("not of an authority"));
    let after = until("a certificate of the newest", PATIENCE, || {
        // A session that is open goes on; the next one needs the new certificate.
        farm.restart_agent("worker");
        std::thread::sleep(Duration::from_secs(2));
        let (_, now) = papers(&farm, "worker");
        (now != before).then_some(now)
    });
    assert_eq!(after.key_pem, before.key_pem);
    assert!(farm.build("at last").contains("at last"));
}
