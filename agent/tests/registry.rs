//! Images from a registry that wants credentials. Needs an engine, and a registry's programs on this machine.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, reason = "tests")]

mod common;

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use common::{LIMIT, assignment, log, rig::rig, run, until};
use kiln_agent::backend::{Backend, Failure, docker};
use kiln_core::{
    outcome::FailureKind,
    spec::{Container, JobSpec, PullPolicy},
};
use tokio::time::timeout;

/// Encodes to `+` and `/`, which the engine does not read as such.
const PASSWORD: &str = "??>>~~þÿ";

struct Registry {
    process: Child,
    host: String,
    dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Registry {
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let users = Command::new("htpasswd").args(["-Bbn", "kiln", PASSWORD]).output().ok()?;
        fs::write(dir.path().join("users"), users.stdout).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let root = dir.path().display();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\n\
             http: {{addr: '{host}', secret: x}}\nauth: {{htpasswd: {{realm: x, path: {root}/users}}}}\n"
        );
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        Some(Self { process, host, dir })
    }

    /// Puts a local image into the registry, and takes its new name off again.
    fn push(&self, engine: &str, image: &str, name: &str) {
        let home = self.dir.path().join("docker");
        let docker = |args: &[&str]| {
            let mut command = Command::new("docker");
            let output = command.env("DOCKER_CONFIG", &home).args(["-H", engine]).args(args);
            let output = output.output().unwrap();
            assert!(output.status.success(), "{args:?}: {output:?}");
        };
        let login = ["login", "-u", "kiln", "-p", PASSWORD, &self.host];
        docker(&login);
        docker(&["tag", image, name]);
        docker(&["push", name]);
        docker(&["rmi", name]);
    }

    fn login_file(&self) -> std::path::PathBuf {
        self.dir.path().join("docker/config.json")
    }
}

async fn pull(engine: &str, auth: Option<&Path>, image: &str) -> (Result<(), Failure>, String) {
    let config = docker::Config {
        host: engine.to_owned(),
        registry_auth: auth.map(Path::to_owned),
        ..docker::Config::default()
    };
    let backend = docker::Docker::new(config, "registry");
    let (_dir, run) = run();
    let container = Container {
        image: image.to_owned(),
        pull: PullPolicy::Always,
        network: kiln_core::spec::Network::None,
        ..Container::default()
    };
    let spec = JobSpec { container: Some(container), ..common::script_spec("echo runs") };
    let result = timeout(LIMIT, backend.run(&assignment(&run, spec), &run)).await.unwrap();
    backend.remove(run.lease).await;
    (result, log(&run))
}

#[tokio::test]
async fn credentials_reach_the_registry() {
    let Some(rig) = rig() else { return };
    let Some(registry) = Registry::start() else {
        println!("skipped: docker-registry or htpasswd is not installed");
        return;
    };
    until("the registry listens", || TcpStream::connect(&registry.host).is_ok()).await;
    // The smallest image there is: a push and a pull of it take little.
    let local = std::env::var("KILN_TEST_BUSYBOX").unwrap_or_else(|_| rig.image.clone());
    let name = format!("{}/kiln/test:1", registry.host);
    registry.push(&rig.host, &local, &name);
    let login = registry.login_file();

    let (result, log) = pull(&rig.host, Some(&login), &name).await;
    assert_eq!(result, Ok(()), "{log}");
    assert!(log.starts_with(&format!("pulling {name}\n")), "{log}");
    assert!(log.contains("Status: ") && log.ends_with("runs\n"), "{log}");
    assert!(!log.contains(PASSWORD));

    let (result, _) = pull(&rig.host, None, &name).await;
    let failure = result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::User, "{failure}");
    assert!(failure.message.contains("credentials"), "{failure}");

    let missing = format!("{}/kiln/test:2", registry.host);
    let (result, _) = pull(&rig.host, Some(&login), &missing).await;
    let failure = result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::User, "{failure}");
    assert!(failure.message.contains(&missing), "{failure}");

    let nothing = registry.dir.path().join("no-such-file");
    let (result, _) = pull(&rig.host, Some(&nothing), &name).await;
    let failure = result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Infra, "{failure}");
    assert!(failure.message.contains("no-such-file"), "{failure}");
    rig.docker(&["rmi", &name]);
}
