//! The shell backend as the executor uses it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use std::{collections::BTreeMap, fs};

use common::{LIMIT, assignment, is_alive, log, number, run, script_spec as script, until};
use kiln_agent::{
    backend::{Backend, Config, Failure, all, shell},
    run::{Run, Secret},
};
use kiln_core::{
    outcome::FailureKind,
    spec::{JobSpec, Resources},
};
use tokio::time::timeout;

async fn end(run: &Run, spec: JobSpec) -> Result<(), Failure> {
    let shell = shell::Shell::new(shell::Config::default(), "test");
    timeout(LIMIT, shell.run(&assignment(run, spec), run)).await.unwrap()
}

#[tokio::test]
async fn a_script_without_a_shebang_stops_at_the_first_error() {
    let (_dir, run) = run();
    let failure = end(&run, script("echo one\nfalse\necho two")).await.unwrap_err();
    assert_eq!((failure.kind, failure.exit_code), (FailureKind::User, Some(1)));
    assert_eq!(failure.message, "exit code 1");
    assert_eq!(log(&run), "one\n");
}

#[tokio::test]
async fn a_shebang_is_obeyed_and_the_script_is_not_in_the_workspace() {
    let (_dir, run) = run();
    end(&run, script("#!/bin/cat\nnot a shell\n")).await.unwrap();
    assert_eq!(log(&run), "#!/bin/cat\nnot a shell\n");
    assert_eq!(fs::read_dir(run.workspace()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_interpreter_that_is_missing_is_the_users_error() {
    let (_dir, run) = run();
    let failure = end(&run, script("#!/no/such/interpreter\n")).await.unwrap_err();
    assert_eq!((failure.kind, failure.exit_code), (FailureKind::User, Some(127)));
    assert!(failure.message.contains("interpreter"), "{failure}");
}

#[tokio::test]
async fn a_command_runs_without_a_shell_in_the_workspace() {
    let (_dir, run) = run();
    fs::write(run.workspace().join("a b"), "").unwrap();
    let command = ["ls", "a b"].map(str::to_owned).to_vec();
    end(&run, JobSpec { command, ..JobSpec::default() }).await.unwrap();
    assert_eq!(log(&run), "a b\n");
}

#[tokio::test]
async fn the_environment_is_the_jobs_own() {
    let (_dir, run) = run();
    let env = BTreeMap::from([
        ("COLOUR".to_owned(), "red and green".to_owned()),
        ("LANG".to_owned(), "C".to_owned()),
    ]);
    end(&run, JobSpec { env, ..script("env") }).await.unwrap();
    let log = log(&run);
    let found: BTreeMap<_, _> = log.lines().filter_map(|line| line.split_once('=')).collect();
    let names = found.keys().copied().filter(|name| !["PWD", "_", "SHLVL"].contains(name));
    assert_eq!(
        names.collect::<Vec<_>>(),
        [
            "CI",
            "COLOUR",
            "HOME",
            "KILN_ATTEMPT",
            "KILN_BUILD",
            "KILN_JOB",
            "KILN_JOB_ID",
            "KILN_LEASE",
            "KILN_PROJECT",
            "KILN_WORKSPACE",
            "LANG",
            "PATH",
            "TERM",
            "TMPDIR",
        ],
    );
    assert_eq!((found["COLOUR"], found["LANG"]), ("red and green", "C"));
    assert_eq!((found["KILN_JOB"], found["KILN_ATTEMPT"]), ("test", "3"));
    assert_eq!(found["KILN_WORKSPACE"], run.workspace().to_str().unwrap());
    assert_eq!(found["HOME"], run.folder.tmp().to_str().unwrap());
}

#[tokio::test]
async fn secrets_are_files_that_are_gone_after_the_job() {
    let (_dir, mut run) = run();
    run.secrets = vec![Secret { name: "token".to_owned(), value: b"hush".to_vec() }];
    let text = "cat $KILN_SECRETS/token; echo; echo $KILN_SECRETS";
    end(&run, script(text)).await.unwrap();
    let log = log(&run);
    let folder = log.strip_prefix("hush\n").unwrap().trim();
    assert!(!std::path::Path::new(folder).parent().unwrap().exists(), "{folder}");
    let told = fs::read_to_string(run.dir().join("supervisor.json")).unwrap();
    assert!(!told.contains("hush"));
}

#[tokio::test]
async fn only_limits_that_are_enforced_are_offered() {
    let plain = shell::Config {
        containment: kiln_agent::cgroup::Want::ProcessGroup,
        ..shell::Config::default()
    };
    let offer = shell::Shell::new(plain, "test").probe().await.unwrap();
    assert!(offer.features.is_empty());
    assert_eq!(offer.facts["containment"], "process group");
    assert!(offer.operations.contains("script") && offer.slots > 0);

    let offer = shell::Shell::new(shell::Config::default(), "test").probe().await.unwrap();
    if !offer.features.contains("memory-limit") {
        println!("skipped: {:?}", offer.facts);
        return;
    }
    let (_dir, run) = run();
    let resources = Resources { memory_bytes: 32 << 20, ..Resources::default() };
    let hog = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}";
    let failure = end(&run, JobSpec { resources, ..script(hog) }).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Oom, "{failure}");
}

#[tokio::test]
async fn what_a_forgotten_lease_left_is_swept() {
    let (_dir, run) = run();
    let owner = format!("sweep{}", std::process::id());
    let shell = shell::Shell::new(shell::Config::default(), &owner);
    if !shell.probe().await.unwrap().facts["containment"].starts_with("cgroup") {
        println!("skipped: control groups are not writable here");
        return;
    }
    let job = assignment(&run, script("echo child $$; sleep 300"));
    let mut running = Box::pin(shell.run(&job, &run));
    tokio::select! {
        result = &mut running => panic!("{result:?}"),
        () = until("it runs", || number(&run, "child ").is_some()) => {}
    }
    let child = number(&run, "child ").unwrap();
    shell.sweep(&[run.lease]).await;
    assert!(is_alive(child), "a lease that is kept goes on");
    shell.sweep(&[]).await;
    assert!(!is_alive(child));
    let failure = timeout(LIMIT, running).await.unwrap().unwrap_err();
    assert_eq!(failure.message, "exit code 137 (SIGKILL)");
}

#[test]
fn configured_backends_are_made() {
    let kinds = |config: &Config| -> Vec<&str> {
        all(config, "test").iter().map(|backend| backend.kind()).collect()
    };
    assert!(kinds(&Config::default()).contains(&"shell"));
    let mut off = Config::default();
    off.shell.enabled = false;
    assert!(!kinds(&off).contains(&"shell"));
}

#[test]
fn the_documented_configuration_is_understood() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/backends.md"));
    let page = page.unwrap();
    let text = page.split("```toml\n").nth(1).and_then(|text| text.split("```").next()).unwrap();
    let config: kiln_agent::Config = toml::from_str(text).unwrap();
    assert_eq!(config.backends.shell.limits.pids, 4096);
    assert!(config.backends.docker.registry_auth.is_some());
    let wrong = text.replace("slots", "slot");
    assert!(toml::from_str::<kiln_agent::Config>(&wrong).is_err(), "unknown keys are refused");
}
