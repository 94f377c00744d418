//! Postgres over TLS: a server with a certificate of its own beside the rig's, and what each `sslmode` makes of it, for
//! the pool and for the connection that listens.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may fail"
)]

#[allow(dead_code, reason = "another room uses the rest")]
#[path = "rig_real/process.rs"]
mod process;

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use process::{Process, until};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_mins(2);

/// The programs of the Postgres that the rig has installed.
fn programs() -> Option<PathBuf> {
    let named = std::env::var("KILN_TEST_POSTGRES").ok().filter(|value| !value.is_empty());
    if named.is_none() {
        assert!(std::env::var("KILN_TEST_REQUIRE").as_deref() != Ok("1"), "no Postgres");
        println!("skipped: KILN_TEST_POSTGRES is not set");
        return None;
    }
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).max()
}

/// A Postgres that speaks TLS only, with a certificate for `localhost`, and not for 127.0.0.1.
struct Postgres {
    dir: TempDir,
    port: u16,
    _process: Process,
}

impl Postgres {
    fn start(programs: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("kiln-pg.").tempdir_in("/tmp").unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(dir.path().join("ca.pem"), authority.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(authority, key);
        let own = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&own, &issuer).unwrap();
        let other = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap();
        fs::write(dir.path().join("other.pem"), other.cert.pem()).unwrap();

        let owner = owner();
        let give = |path: &Path| chown(path, owner, owner).unwrap();
        give(&data);
        let mut init = as_owner(owner, &programs.join("initdb"));
        init.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "-D"]);
        let output = init.arg(&data).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for (name, text) in [("server.crt", certificate.pem()), ("server.key", own.serialize_pem())]
        {
            let path = data.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            give(&path);
        }
        // Nobody comes in without TLS.
        fs::write(data.join("pg_hba.conf"), "hostssl all all 127.0.0.1/32 trust\n").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut run = as_owner(owner, &programs.join("postgres"));
        run.arg("-D").arg(&data).args(["-p", &port.to_string(), "-k", "", "-F"]);
        run.args(["-c", "listen_addresses=127.0.0.1", "-c", "ssl=on"]);
        let process = Process::start("postgres", dir.path(), &mut run);
        let postgres = Self { dir, port, _process: process };
        until("Postgres", PATIENCE, || {
            let mut ready = Command::new(programs.join("pg_isready"));
            ready.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
            ready.status().unwrap().success().then_some(())
        });
        postgres
    }

    fn url(&self, host: &str, query: &str) -> String {
        let query = query.replace("CA", self.dir.path().join("ca.pem").to_str().unwrap());
        let query = query.replace("OTHER", self.dir.path().join("other.pem").to_str().unwrap());
        format!("postgres://postgres@{host}:{}/postgres{query}", self.port)
    }
}

/// Postgres refuses to run as root.
fn owner() -> Option<u32> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).unwrap();
    line.split(':').nth(2).unwrap().parse().ok()
}

fn as_owner(owner: Option<u32>, program: &Path) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).current_dir("/");
    if let Some(owner) = owner {
        command.uid(owner).gid(owner);
    }
    command
}

/// Whether both connections of a server come up with this URL, and what the one says that does not.
async fn tried(url: &str) -> [Result<(), String>; 2] {
    use kiln_server::{
        store::sql,
        wake::{Wake, postgres},
    };
    let chain = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(error) = next {
            text = format!("{text}: {error}");
            next = error.source();
        }
        text
    };
    let pool = sql::connect(url, &sql::Options { connections: 2, ..sql::Options::default() }).await;
    let pool = match pool {
        Ok(sql) => {
            sql.close().await;
            Ok(())
        }
        Err(error) => Err(chain(&error)),
    };
    let tasks = tokio_util::task::TaskTracker::new();
    let stop = tokio_util::sync::CancellationToken::new();
    let heard = postgres::Postgres::start(url, uuid::Uuid::nil(), &tasks, stop.clone()).await;
    let heard = heard.map(|wake| wake.publish(&[])).map_err(|error| chain(&error));
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    [pool, heard]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_of_a_server_keeps_to_sslmode() {
    let Some(programs) = programs() else { return };
    let postgres = Postgres::start(&programs);
    for (host, query, works) in [
        ("127.0.0.1", "", true),
        ("127.0.0.1", "?sslmode=prefer", true),
        ("127.0.0.1", "?sslmode=disable", false),
        ("127.0.0.1", "?sslmode=require", true),
        ("127.0.0.1", "?sslmode=require&sslrootcert=OTHER", false),
        ("127.0.0.1", "?sslmode=verify-ca&sslrootcert=CA", true),
        ("127.0.0.1", "?sslmode=verify-ca&sslrootcert=OTHER", false),
        ("127.0.0.1", "?sslmode=verify-ca", false),
        ("127.0.0.1", "?sslmode=verify-full&sslrootcert=CA", false),
        ("localhost", "?sslmode=verify-full&sslrootcert=CA", true),
        ("localhost", "?sslmode=verify-full&sslrootcert=/nowhere", false),
    ] {
        let url = postgres.url(host, query);
        let found = tried(&url).await;
        println!("{host} {query}: {found:?}");
        assert_eq!(found.map(|one| one.is_ok()), [works; 2], "{host} {query}");
    }
}
