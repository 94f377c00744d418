//! Submit, run, log, artifact: the way of a build that goes well, on each database.

use std::process::Command;

use crate::harness::{Kiln, id, on_both_databases};

on_both_databases!(
    a_graph_runs_from_git_to_artifact,
    a_client_that_asks_for_nonsense_changes_nothing,
    run_ends_with_the_exit_code_of_the_program,
    every_option_of_a_container_is_kept,
);

/// Serves the C project over git, as a forge would.
struct Git {
    daemon: crate::process::Process,
    url: String,
}

impl Git {
    fn serve(kiln: &Kiln) -> Self {
        let source = kiln.path("hello-c");
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/hello-c");
        shell(&format!(
            "cp -r {fixture} {source} && cd {source} && git init -q -b main && git add -A && \
             git -c user.name=rig -c user.email=rig@localhost commit -qm 'Count words'",
            source = source.display()
        ));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let exec = Command::new("git").arg("--exec-path").output().unwrap().stdout;
        let program = format!("{}/git-daemon", String::from_utf8(exec).unwrap().trim());
        let base = kiln.path("");
        let mut command = Command::new(program);
        command.args(["--export-all", "--listen=127.0.0.1"]).arg(format!("--port={port}"));
        command.arg(format!("--base-path={}", base.display())).arg(base);
        let daemon = crate::process::Process::start("git", &kiln.path(""), &mut command);
        let url = format!("git://127.0.0.1:{port}/hello-c");
        crate::process::until("git daemon", crate::harness::START, || {
            let output = Command::new("git").args(["ls-remote", &url]).output().unwrap();
            output.status.success().then_some(())
        });
        Self { daemon, url }
    }
}

fn shell(script: &str) {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

fn a_graph_runs_from_git_to_artifact(kiln: &mut Kiln) {
    let mut git = Git::serve(kiln);
    let file = include_str!("../../../demo/build.toml").replace("@URL@", &git.url);
    let build = kiln.submit(&file.replace("version = 1\n", ""));

    let seen = kiln.done(&build);
    assert_eq!(seen["build"]["state"], "succeeded", "{seen:#}");
    let compile = kiln.log(id(&kiln.job(&build, "compile")));
    let compile = String::from_utf8(compile).unwrap();
    assert!(compile.contains("link   build/words"), "{compile}");

    let kept = kiln.json(&["artifacts", "list", &build]);
    let names: Vec<&str> = kept["artifacts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|kept| kept["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["build/words", "words.txt"]);
    let to = kiln.path("got");
    kiln.cli(&["artifacts", "get", &build, "words.txt", "--to", &to.display().to_string()]);
    let got = std::fs::read(to).unwrap();
    let counted = kiln.log(id(&kiln.job(&build, "count")));
    let (checkout, counted) = std::str::from_utf8(&counted).unwrap().split_once('\n').unwrap();
    assert!(checkout.ends_with(&git.url), "{checkout}");
    assert_eq!(String::from_utf8_lossy(&got), counted);
    git.daemon.kill();
}

fn a_client_that_asks_for_nonsense_changes_nothing(kiln: &mut Kiln) {
    let path = kiln.path("wrong.toml");
    std::fs::write(
        &path,
        "version = 1\n[[jobs]]\nname = \"a\"\nscript = \"true\"\nneeds = [\"b\"]\n",
    )
    .unwrap();
    let output = kiln.try_cli(&["submit", "-f", &path.display().to_string()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains("needs") && said.contains('b'), "{said}");
    assert_eq!(kiln.json(&["list"])["builds"], serde_json::json!([]));
}

fn run_ends_with_the_exit_code_of_the_program(kiln: &mut Kiln) {
    let output = kiln.try_cli(&[
        "run",
        "--no-source",
        "--backend",
        "shell",
        "--",
        "sh",
        "-c",
        "echo fine; exit 41",
    ]);
    assert_eq!(output.status.code(), Some(41), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("fine"));
}

fn every_option_of_a_container_is_kept(kiln: &mut Kiln) {
    let (job, log) = kiln.run(
        r#"
script = """
ls /sys/class/net
id -u
touch /outside 2>/dev/null && echo root is writable
touch inside && echo workspace is writable
touch /scratch/x && echo tmpfs is writable
grep NoNewPrivs /proc/self/status
grep CapBnd /proc/self/status
cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true
cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null || true
"""
resources = { memory = "64MiB", cpus = 1, pids = 50 }
container = { image = "@BUSYBOX@", network = "none", read_only = true, user = "1234:1234", cap_drop = ["ALL"], tmpfs = { "/scratch" = "1MiB" } }
"#,
    );
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", String::from_utf8_lossy(&log));
    let expected = "lo\n1234\nworkspace is writable\ntmpfs is writable\nNoNewPrivs:\t1\nCapBnd:\t0000000000000000\n67108864\n50\n";
    assert_eq!(String::from_utf8_lossy(&log), expected);
}
