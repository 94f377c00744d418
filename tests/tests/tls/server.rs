//! The server's side: who reaches it, and who learns why not.

use std::{fs, path::Path, process::Command};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::{
    farm::{Farm, PATIENCE, failed, s_client, succeeded, text},
    process::until,
};

const TLS: (&str, &str) = ("KILN_TLS_ENABLED", "true");

#[test]
fn a_build_runs_over_tls_from_enrolment_to_log() {
    let mut farm = Farm::start(&[TLS]);
    assert!(farm.url.starts_with("https://"), "{}", farm.url);
    let token = farm.enroll_token("worker");
    farm.start_agent("worker", Some(&token));
    assert!(farm.build("hello over TLS").contains("hello over TLS"));
    // It is the same authority after a restart.
    let known = farm.fingerprint();
    farm.restart_server(&[TLS]);
    assert_eq!(farm.fingerprint(), known);
    assert!(farm.build("and again").contains("and again"));
    // Who trusts by fingerprint needs no file.
    let mut pinned = farm.admin(&["list"]);
    pinned.args(["--ca-fingerprint", &farm.fingerprint()]);
    succeeded(pinned);
    // The server's own machine needs neither.
    let mut local = farm.command(&["list", "--server", &farm.url]);
    local.env("KILN_DATA", farm.path("server"));
    succeeded(local);
}

#[test]
fn strangers_see_a_certificate_of_the_authority_and_both_protocols() {
    let farm = Farm::start(&[TLS]);
    let seen = s_client(&farm, &["-alpn", "h2", "-verify_return_error", "-verify_ip", "127.0.0.1"]);
    assert!(seen.contains("Verify return code: 0 (ok)"), "{seen}");
    assert!(seen.contains("ALPN protocol: h2"), "{seen}");
    let seen = s_client(&farm, &["-verify_return_error", "-verify_hostname", "localhost"]);
    assert!(seen.contains("Verify return code: 0 (ok)"), "{seen}");
    let curl = |url: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "60", "--http1.1", "--cacert"]).arg(farm.ca_file());
        text(&curl.arg(url).output().unwrap().stdout)
    };
    assert_eq!(curl(&format!("{}/healthz", farm.url)), "ok\n");
    let plain = curl(&format!("http://127.0.0.1:{}/healthz", farm.port()));
    assert!(plain.contains("https://"), "{plain}");
    // Neither folder nor log shows a key to anybody else.
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(farm.path(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!([mode("server"), mode("server/secrets.key")], [0o700, 0o600]);
    let database = fs::read(farm.path("server/kiln.db-wal")).unwrap_or_default();
    let said = fs::read(farm.path("server.err")).unwrap();
    for bytes in [database, said] {
        assert!(!text(&bytes).contains("PRIVATE KEY"));
    }
}

#[test]
fn who_can_not_be_reached_securely_is_told_why() {
    // All of 127.0.0.0/8 is this machine; the certificate is for 127.0.0.1 alone.
    let farm = Farm::start(&[TLS, ("KILN_LISTEN", "0.0.0.0:0")]);
    let list = |url: String| {
        let mut command = farm.trusting(&["list"]);
        command.arg("--server").arg(url);
        command
    };
    let said = failed(list(format!("http://127.0.0.1:{}", farm.port())));
    assert!(said.contains("the server speaks TLS") && said.contains("write https://"), "{said}");
    let said = failed(list(format!("https://127.0.0.2:{}", farm.port())));
    assert!(said.contains("not for 127.0.0.2") && said.contains("tls.names"), "{said}");

    let other = authority();
    fs::write(farm.path("other.pem"), &other.pem).unwrap();
    let mut wrong = farm.admin(&["list", "--ca-file"]);
    wrong.arg(farm.path("other.pem"));
    let said = failed(wrong);
    assert!(said.contains("not of an authority") && said.contains("kiln ca show"), "{said}");
    let said = failed(farm.admin(&["list"]));
    assert!(said.contains("not of an authority"), "{said}");
    let mut wrong = farm.admin(&["list", "--ca-fingerprint"]);
    wrong.arg(format!("sha256:{}", "ab".repeat(32)));
    let said = failed(wrong);
    let shown = farm.fingerprint().replace(':', "").to_lowercase();
    assert!(said.contains(&format!("sha256:{shown}")), "{said}");

    let token = farm.enroll_token("lost");
    let mut agent = farm.command(&["agent", "enroll", "--name", "lost", "--enroll-token-file"]);
    agent.arg(token).arg("--data").arg(farm.path("lost")).env("KILN_SERVER", &farm.url);
    let said = failed(agent);
    assert!(said.contains("not of an authority"), "{said}");

    let plain = Farm::start(&[]);
    assert!(plain.url.starts_with("http://"));
    let mut wrong = plain.admin(&["list", "--server"]);
    wrong.arg(format!("https://127.0.0.1:{}", plain.port()));
    let said = failed(wrong);
    assert!(said.contains("does not speak TLS") && said.contains("http://"), "{said}");
}

#[test]
fn nobody_listens_readably_by_mistake() {
    let farm = Farm::start(&[]);
    let server = |variables: &[(&str, &str)]| {
        let mut command = farm.command(&["server", "--check-config", "--listen", "0.0.0.0:1"]);
        command.envs(variables.iter().copied()).arg("--data").arg(farm.path("other"));
        command
    };
    let said = failed(server(&[]));
    assert!(said.contains("tls.enabled") && said.contains("tls.plaintext"), "{said}");
    succeeded(server(&[TLS]));
    succeeded(server(&[("KILN_TLS_PLAINTEXT", "true")]));
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

/// Writes a certificate for 127.0.0.1 and its key; it ends with this year.
fn certify(by: &Authority, year: i32, certificate: &Path, key: &Path) {
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.not_after = date_time_ymd(year, 12, 31);
    let own = KeyPair::generate().unwrap();
    let signed = params.signed_by(&own, &by.issuer).unwrap();
    // Both at once, as far as that can be done: between the two they do not fit, and the server keeps what it has.
    fs::write(key, own.serialize_pem()).unwrap();
    fs::write(certificate, signed.pem()).unwrap();
}

#[test]
fn files_that_change_are_shown_to_new_connections() {
    let dir = tempfile::tempdir().unwrap();
    let [certificate, key, trusted] = ["crt", "key", "ca"].map(|name| dir.path().join(name));
    let (first, second) = (authority(), authority());
    fs::write(&trusted, &first.pem).unwrap();
    certify(&first, 2020, &certificate, &key);
    let shown = |path: &Path| path.to_str().unwrap().to_owned();
    let (cert_file, key_file) = (shown(&certificate), shown(&key));
    let farm =
        Farm::start(&[TLS, ("KILN_TLS_CERT_FILE", &cert_file), ("KILN_TLS_KEY_FILE", &key_file)]);
    let list = || {
        let mut command = farm.admin(&["list", "--ca-file"]);
        command.arg(&trusted);
        command
    };
    let said = failed(list());
    assert!(said.contains("has expired") && said.contains("tls.cert_file"), "{said}");

    certify(&first, 2090, &certificate, &key);
    until("the new certificate", PATIENCE, || {
        list().output().unwrap().status.success().then_some(())
    });
    // What can't be used changes nothing.
    fs::write(&certificate, "nothing").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    succeeded(list());
    certify(&second, 2090, &certificate, &key);
    until("the other authority", PATIENCE, || {
        let output = list().output().unwrap();
        text(&output.stderr).contains("not of an authority").then_some(())
    });
    fs::write(&trusted, &second.pem).unwrap();
    succeeded(list());
}
