//! A real engine, where the environment names one.

use std::{env, process::Command};

use kiln_agent::{
    backend::{Backend, Config, Failure, docker},
    run::Run,
};
use kiln_core::spec::{Container, JobSpec, Network};
use tokio::time::timeout;

use super::{LIMIT, assignment, script_spec};

pub struct Rig {
    pub host: String,
    pub image: String,
}

/// The engine, or nothing where tests may go without.
pub fn rig() -> Option<Rig> {
    if let (Ok(host), Ok(image)) = (env::var("KILN_TEST_DOCKER"), env::var("KILN_TEST_IMAGE")) {
        return Some(Rig { host, image });
    }
    assert!(env::var("KILN_TEST_REQUIRE").is_err(), "KILN_TEST_DOCKER is not set");
    println!("skipped: KILN_TEST_DOCKER is not set");
    None
}

impl Rig {
    /// A backend of an agent of its own, so that tests don't sweep each other's containers.
    pub fn backend(&self, owner: &str) -> docker::Docker {
        docker::Docker::new(self.config().docker, &format!("{owner}-{}", std::process::id()))
    }

    pub fn config(&self) -> Config {
        let mut config = Config::default();
        config.docker.host.clone_from(&self.host);
        config
    }

    pub fn spec(&self, script: &str) -> JobSpec {
        JobSpec { container: Some(self.container()), ..script_spec(script) }
    }

    pub fn container(&self) -> Container {
        Container { image: self.image.clone(), network: Network::None, ..Container::default() }
    }

    pub async fn end(&self, run: &Run, spec: JobSpec) -> Result<(), Failure> {
        let backend = self.backend("test");
        let result = timeout(LIMIT, backend.run(&assignment(run, spec), run)).await;
        backend.remove(run.lease).await;
        result.expect("it ends")
    }

    pub fn docker(&self, args: &[&str]) -> String {
        let output = Command::new("docker").args(["-H", &self.host]).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Names of the containers of an agent, running or not.
    pub fn containers(&self, owner: &str) -> Vec<String> {
        let label = format!("label=dev.kiln.agent={owner}-{}", std::process::id());
        let names = self.docker(&["ps", "-a", "--filter", &label, "--format", "{{.Names}}"]);
        names.lines().map(str::to_owned).collect()
    }
}
