//! The docker backend against a real engine: KILN_TEST_DOCKER names it, KILN_TEST_IMAGE an image that is there.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, reason = "tests")]

mod common;

use std::{collections::BTreeMap, env, fs, os::unix::fs::MetadataExt, process::Command};

use common::{LIMIT, assignment, log, other_agent, rig::rig, run, script_spec, until};
use kiln_agent::{
    backend::{Backend, docker},
    run::Secret,
};
use kiln_core::{
    outcome::FailureKind,
    spec::{Container, JobSpec, PullPolicy, Resources, Timeouts},
};
use tokio::time::timeout;

#[tokio::test]
async fn the_engine_says_what_it_enforces() {
    let Some(rig) = rig() else { return };
    let offer = rig.backend("test").probe().await.unwrap();
    assert!(offer.features.contains("container") && offer.features.contains("network-none"));
    assert!(offer.operations.contains("script"));
    assert!(!offer.facts["version"].is_empty() && offer.facts["cgroup"].starts_with('v'));

    let nowhere = docker::Config { host: "unix:///nowhere".to_owned(), ..Default::default() };
    let error = docker::Docker::new(nowhere, "test").probe().await.unwrap_err();
    assert!(error.to_string().contains("unix:///nowhere"), "{error}");
    let remote = docker::Config { host: "tcp://127.0.0.1:1".to_owned(), ..Default::default() };
    let error = docker::Docker::new(remote, "test").probe().await.unwrap_err();
    assert!(error.to_string().contains("unix://"), "{error}");
}

#[tokio::test]
async fn a_script_runs_in_the_workspace_and_its_log_is_in_order() {
    let Some(rig) = rig() else { return };
    let (_dir, run) = run();
    fs::write(run.workspace().join("source"), "from the checkout\n").unwrap();
    let text = "cat source\npwd\necho made >made\n\
                i=0; while [ $i -lt 200 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done\n\
                : >/dev/stderr; exec 2>/dev/stderr; echo last >&2\n\
                echo $KILN_JOB $KILN_WORKSPACE $CI $COLOUR";
    let env = BTreeMap::from([("COLOUR".to_owned(), "red".to_owned())]);
    rig.end(&run, JobSpec { env, ..rig.spec(text) }).await.unwrap();
    let lines: String = (0..200).flat_map(|i| [format!("o{i}\n"), format!("e{i}\n")]).collect();
    let wanted = format!("from the checkout\n/workspace\n{lines}last\ntest /workspace true red\n");
    assert_eq!(log(&run), wanted);
    assert_eq!(fs::read_to_string(run.workspace().join("made")).unwrap(), "made\n");
    let stages = fs::read_to_string(run.folder.stages()).unwrap();
    assert!(stages.contains("\"image\"") && stages.contains("\"script\""), "{stages}");
}

#[tokio::test]
async fn ends_are_told_apart() {
    let Some(rig) = rig() else { return };
    for (text, code, message) in [
        ("exit 3", 3, "exit code 3"),
        ("kill -SEGV $$", 139, "exit code 139 (SIGSEGV)"),
        ("no-such-program", 127, "exit code 127 (program not found)"),
        ("#!/no/such/interpreter\n", 127, "exit code 127 (program not found)"),
    ] {
        let (_dir, run) = run();
        let failure = rig.end(&run, rig.spec(text)).await.unwrap_err();
        assert_eq!((failure.kind, failure.exit_code), (FailureKind::User, Some(code)), "{text}");
        assert_eq!(failure.message, message, "{text}");
    }
    let (_dir, run) = run();
    let command = vec!["no-such-program".to_owned()];
    let spec = JobSpec { script: String::new(), command, ..rig.spec("") };
    let failure = rig.end(&run, spec).await.unwrap_err();
    assert_eq!((failure.kind, failure.exit_code), (FailureKind::User, Some(127)));
    assert!(log(&run).contains("no-such-program"), "{}", log(&run));
}

#[tokio::test]
async fn images_that_cannot_be_had_are_blamed_on_the_right_one() {
    let Some(rig) = rig() else { return };
    for (image, pull, kind) in [
        ("kiln.invalid/never:1", PullPolicy::Never, FailureKind::User),
        ("127.0.0.1:1/nobody/listens:1", PullPolicy::Missing, FailureKind::Infra),
        ("Not A Name", PullPolicy::Missing, FailureKind::User),
    ] {
        let (_dir, run) = run();
        let container = Container { image: image.to_owned(), pull, ..rig.container() };
        let spec = JobSpec { container: Some(container), ..rig.spec("true") };
        let failure = rig.end(&run, spec).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{image}: {failure}");
        assert!(failure.message.contains(image), "{failure}");
    }
    let (_dir, run) = run();
    let failure = rig.end(&run, script_spec("true")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::User);
    assert!(failure.message.contains("spec.container.image"), "{failure}");
}

#[tokio::test]
async fn lack_of_memory_is_told_from_a_plain_kill() {
    let Some(rig) = rig() else { return };
    if !rig.backend("test").probe().await.unwrap().features.contains("memory-limit") {
        println!("skipped: the engine does not limit memory");
        return;
    }
    let resources = Resources { memory_bytes: 32 << 20, ..Resources::default() };
    let hog = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}";
    for (text, kind) in [
        (format!("exec sh -c \"{}\"", hog.replace('$', "\\$")), FailureKind::Oom),
        (format!("sh -c \"{}\" || exit 3", hog.replace('$', "\\$")), FailureKind::User),
        ("kill -KILL $$".to_owned(), FailureKind::User),
    ] {
        let (_dir, run) = run();
        let failure = rig.end(&run, JobSpec { resources, ..rig.spec(&text) }).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{text}: {failure}");
    }
}

#[tokio::test]
async fn isolation_is_as_the_spec_says() {
    let Some(rig) = rig() else { return };
    let (_dir, run) = run();
    let container = Container {
        read_only: true,
        tmpfs: BTreeMap::from([("/scratch".to_owned(), 1 << 20)]),
        user: "nobody".to_owned(),
        cap_drop: vec!["ALL".to_owned()],
        ..rig.container()
    };
    let text = "id -u\n\
                grep NoNewPrivs /proc/self/status\ngrep CapBnd /proc/self/status\n\
                ls /sys/class/net\n\
                touch /root-is-read-only 2>/dev/null && echo wrong\n\
                touch /kiln/script 2>/dev/null && echo wrong\n\
                echo '#!/bin/sh' >/scratch/run; echo 'echo runs' >>/scratch/run\n\
                chmod +x /scratch/run; /scratch/run\n\
                head -c 5000000 /dev/zero >/scratch/big 2>/dev/null && echo wrong\n\
                mkdir made; echo x >made/file; chmod 500 made; cat given/file\n\
                echo y >given/file; ls -ld /proc/1/exe >/dev/null; cat /proc/1/comm";
    fs::create_dir(run.workspace().join("given")).unwrap();
    fs::write(run.workspace().join("given/file"), "given\n").unwrap();
    let resources = Resources { pids: 50, cpu_millis: 1_000, ..Resources::default() };
    let spec = JobSpec { container: Some(container), resources, ..rig.spec(text) };
    let result = rig.end(&run, spec).await;
    let log = log(&run);
    assert_eq!(result, Ok(()), "{log}");
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(
        lines,
        [
            "65534",
            "NoNewPrivs:\t1",
            "CapBnd:\t0000000000000000",
            "lo",
            "runs",
            "given",
            "docker-init",
        ],
    );
    assert_eq!(fs::read_to_string(run.workspace().join("given/file")).unwrap(), "y\n");
    fs::remove_dir_all(run.workspace()).unwrap();
}

#[tokio::test]
async fn secrets_are_files_and_nowhere_else() {
    let Some(rig) = rig() else { return };
    let (_dir, mut run) = run();
    run.secrets = vec![Secret { name: "token".to_owned(), value: b"hush".to_vec() }];
    let container = Container { user: "1000:1000".to_owned(), ..rig.container() };
    let text = "cat $KILN_SECRETS/token; echo; echo x >$KILN_SECRETS/token; env";
    let spec = JobSpec { container: Some(container), ..rig.spec(text) };
    let backend = rig.backend("secrets");
    let failure = backend.run(&assignment(&run, spec), &run).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::User, "the mount is read-only");
    let log = log(&run);
    assert_eq!(log.matches("hush").count(), 1, "{log}");
    let inspected = rig.docker(&["inspect", &format!("kiln-{}", run.lease)]);
    assert!(inspected.contains("KILN_SECRETS") && !inspected.contains("hush"));
    backend.remove(run.lease).await;
    assert!(rig.containers("secrets").is_empty());
}

#[tokio::test]
async fn a_cancel_and_a_stall_end_the_container() {
    let Some(rig) = rig() else { return };
    let (_dir, first) = run();
    let text = "trap 'echo cleaning; exit 9' TERM; echo up; while :; do sleep 0.1; done";
    let ending = tokio::spawn({
        let (run, spec) = (first.clone(), rig.spec(text));
        let backend = rig.backend("cancel");
        async move { backend.run(&assignment(&run, spec), &run).await }
    });
    until("it runs", || log(&first).contains("up")).await;
    first.cancel.cancel();
    let failure = timeout(LIMIT, ending).await.unwrap().unwrap().unwrap_err();
    assert_eq!(failure.exit_code, Some(9), "{failure}");
    assert!(log(&first).ends_with("cleaning\n"), "{}", log(&first));
    rig.backend("cancel").remove(first.lease).await;

    let (_dir, second) = run();
    let timeouts = Timeouts { stall_ms: 500, ..Timeouts::default() };
    let text = "trap '' TERM; while :; do sleep 1; done";
    let spec = JobSpec { timeouts, ..rig.spec(text) };
    assert_eq!(rig.end(&second, spec).await.unwrap_err().kind, FailureKind::Stalled);
}

#[tokio::test]
async fn the_container_survives_its_agent() {
    let Some(rig) = rig() else { return };
    let (_dir, run) = run();
    let text = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.005; done; exit 7";
    let spec = JobSpec { backend: "docker".to_owned(), ..rig.spec(text) };
    let mut agent = other_agent(&run, spec.clone(), &rig.config()).spawn().unwrap();
    until("the job prints", || log(&run).contains("line 3\n")).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    let handle = run.folder.remembered().unwrap().unwrap();
    let (backend, job) = (rig.backend("survivor"), assignment(&run, spec));
    let failure = timeout(LIMIT, backend.adopt(&job, &run, &handle)).await.unwrap().unwrap_err();
    assert_eq!((failure.kind, failure.exit_code), (FailureKind::User, Some(7)));
    let wanted: String = (0..300).flat_map(|i| [format!("line {i}\n")]).collect();
    assert_eq!(log(&run), wanted);
    let again = backend.adopt(&job, &run, &handle).await.unwrap_err();
    assert_eq!(again, failure);
    backend.remove(run.lease).await;
}

#[tokio::test]
async fn a_supervisor_killed_takes_the_container_with_it() {
    let Some(rig) = rig() else { return };
    let (_dir, run) = run();
    let ending = tokio::spawn({
        let (run, spec) = (run.clone(), rig.spec("echo up; sleep 300"));
        let backend = rig.backend("orphan");
        async move { backend.run(&assignment(&run, spec), &run).await }
    });
    until("it runs", || log(&run).contains("up")).await;
    let identity = fs::read_to_string(run.dir().join("supervisor.pid")).unwrap();
    let pid = identity.split(' ').nth(1).unwrap();
    assert!(Command::new("kill").args(["-KILL", pid]).status().unwrap().success());
    let failure = timeout(LIMIT, ending).await.unwrap().unwrap().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Infra);
    let name = format!("kiln-{}", run.lease);
    until("the container is dead", || {
        rig.docker(&["inspect", "-f", "{{.State.Running}}", &name]).trim() == "false"
    })
    .await;
    rig.backend("orphan").remove(run.lease).await;
}

#[tokio::test]
async fn containers_stay_until_they_are_removed_and_orphans_are_swept() {
    let Some(rig) = rig() else { return };
    let backend = rig.backend("sweep");
    let mut leases = vec![];
    for _ in 0..2 {
        let (_dir, run) = run();
        backend.run(&assignment(&run, rig.spec("true")), &run).await.unwrap();
        leases.push(run.lease);
    }
    assert_eq!(rig.containers("sweep").len(), 2);
    backend.sweep(&leases[..1]).await;
    assert_eq!(rig.containers("sweep"), [format!("kiln-{}", leases[0])]);
    backend.remove(leases[0]).await;
    backend.remove(leases[0]).await;
    assert!(rig.containers("sweep").is_empty());
}

#[tokio::test]
async fn an_image_without_a_shell_runs_a_command() {
    let (Some(rig), Ok(busybox)) = (rig(), env::var("KILN_TEST_BUSYBOX")) else {
        println!("skipped: KILN_TEST_BUSYBOX is not set");
        return;
    };
    let image = format!("kiln-test-no-shell:{}", std::process::id());
    let pipe = format!(
        "docker -H {host} rm -f {name} >/dev/null 2>&1; \
         docker -H {host} create --name {name} {busybox} x >/dev/null && \
         docker -H {host} cp {name}:/bin/busybox - | docker -H {host} import - {image}; \
         docker -H {host} rm {name}",
        host = rig.host,
        name = format_args!("kiln-no-shell-{}", std::process::id())
    );
    assert!(Command::new("sh").args(["-c", &pipe]).status().unwrap().success());
    let container = Container { image: image.clone(), ..rig.container() };
    let command = |words: &[&str]| JobSpec {
        script: String::new(),
        command: words.iter().map(|&word| word.to_owned()).collect(),
        container: Some(container.clone()),
        ..rig.spec("")
    };

    let (_dir, first) = run();
    let text = "/busybox seq 1 20000; /busybox sleep 0.3; echo end; exit 5";
    let failure = rig.end(&first, command(&["/busybox", "sh", "-c", text])).await.unwrap_err();
    assert_eq!(failure.exit_code, Some(5), "{failure}");
    let wanted: String = (1..=20_000).flat_map(|i| [format!("{i}\n")]).collect();
    assert_eq!(log(&first), wanted + "end\n");

    let (_dir, second) = run();
    let failure = rig.end(&second, command(&["/no/such/program"])).await.unwrap_err();
    assert_eq!((failure.kind, failure.exit_code), (FailureKind::User, Some(127)), "{failure}");

    let (_dir, third) = run();
    let spec = JobSpec { container: Some(container.clone()), ..rig.spec("true") };
    let failure = rig.end(&third, spec).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::User);
    assert!(failure.message.contains("/bin/sh"), "{failure}");
    rig.docker(&["rmi", &image]);
}

#[tokio::test]
async fn an_agent_that_is_not_root_can_remove_what_containers_left() {
    let Some(rig) = rig() else { return };
    let (_dir, run) = run();
    let text = "mkdir made; echo x >made/file; chmod -R 700 made; id -u";
    let spec = JobSpec { backend: "docker".to_owned(), ..rig.spec(text) };
    let agent = other_agent(&run, spec, &rig.config());
    let group = fs::metadata(rig.host.trim_start_matches("unix://")).unwrap().gid();
    let as_user = |command: &Command| {
        let mut user = Command::new("setpriv");
        user.args(["--reuid=1000", &format!("--regid={group}"), "--clear-groups"]);
        user.arg(command.get_program()).args(command.get_args()).output()
    };
    let mut version = Command::new("docker");
    version.args(["-H", &rig.host, "version"]);
    let mut chown = Command::new("chown");
    chown.args(["-R", "1000"]).arg(run.dir());
    if !chown.status().unwrap().success()
        || !as_user(&version).is_ok_and(|output| output.status.success())
    {
        println!("skipped: no other user of this machine reaches the engine");
        return;
    }
    let output = as_user(&agent).unwrap();
    assert!(output.status.success(), "{output:?} {}", log(&run));
    assert_eq!(log(&run), "0\n", "it is root in the container");
    let mut remove = Command::new("rm");
    remove.arg("-r").arg(run.workspace());
    let output = as_user(&remove).unwrap();
    assert!(!run.workspace().join("made").exists(), "{output:?}");
    rig.docker(&["rm", "-f", &format!("kiln-{}", run.lease)]);
}

#[tokio::test]
async fn much_output_of_a_container_arrives_whole_and_fast() {
    let Some(rig) = rig() else { return };
    let (_dir, run) = run();
    let begin = std::time::Instant::now();
    let resources = Resources { log_bytes: 1 << 30, ..Resources::default() };
    let spec = JobSpec { resources, ..rig.spec("head -c 200000000 /dev/zero") };
    rig.end(&run, spec).await.unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!(fs::metadata(run.folder.spool("main")).unwrap().len(), 200_000_000);
    println!("200 MB of a container's output in {seconds:.2} s, its start included");
}
