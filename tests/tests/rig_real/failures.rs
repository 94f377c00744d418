//! Each way to fail is told apart, with the exit code where there is one.

use serde_json::Value;

use crate::harness::{Kiln, on_both_databases};

on_both_databases!(failures_in_a_container, failures_of_a_process, a_cancelled_job_ends);

const BOX: &str =
    "container = { image = \"@BUSYBOX@\", network = \"none\" }\nretry = { max_attempts = 1 }\n";
const SHELL: &str = "backend = \"shell\"\nretry = { max_attempts = 1 }\n";

/// Runs the job and compares its failure kind and exit code.
fn fails(kiln: &mut Kiln, job: &str, kind: &str, code: Option<i32>) -> Value {
    let outcome = ends(kiln, job, kind);
    assert_eq!(outcome["exit_code"], serde_json::json!(code), "{job}\n{outcome:#}");
    outcome
}

/// Runs the job and compares its failure kind alone: what was ended from outside has no code to count on.
fn ends(kiln: &mut Kiln, job: &str, kind: &str) -> Value {
    let (seen, log) = kiln.run(job);
    let told = format!("{job}\n{seen:#}\n{}", String::from_utf8_lossy(&log));
    assert_eq!(seen["state"], "failed", "{told}");
    assert_eq!(seen["outcome"]["failure"], kind, "{told}");
    assert_eq!(seen["attempt"], 1, "{told}");
    seen["outcome"].clone()
}

fn failures_in_a_container(kiln: &mut Kiln) {
    fails(kiln, &format!("script = \"exit 3\"\n{BOX}"), "user", Some(3));
    // A kill and a lack of memory look alike from outside: 137.
    fails(kiln, &format!("script = \"kill -9 $$\"\n{BOX}"), "user", Some(137));
    let hungry =
        format!("script = \"tail /dev/zero\"\nresources = {{ memory = \"32MiB\" }}\n{BOX}");
    fails(kiln, &hungry, "oom", Some(137));
    // A child that ran out of memory, in a job that goes on and fails by itself, is the job's own affair.
    let survivor = format!(
        "script = \"(tail /dev/zero) || true; exit 4\"\nresources = {{ memory = \"32MiB\" }}\n{BOX}"
    );
    fails(kiln, &survivor, "user", Some(4));
    ends(
        kiln,
        &format!("script = \"sleep 100\"\ntimeouts = {{ total = \"2s\" }}\n{BOX}"),
        "timeout",
    );
    ends(
        kiln,
        &format!("script = \"echo x; sleep 100\"\ntimeouts = {{ stall = \"2s\" }}\n{BOX}"),
        "stalled",
    );
    // No registry answers there: another try may help. One that must not be asked is the build file's mistake.
    let unreachable = BOX.replace("@BUSYBOX@", "127.0.0.1:1/no-such-image:1");
    let outcome = fails(kiln, &format!("script = \"true\"\n{unreachable}"), "infra", None);
    assert!(outcome["message"].as_str().unwrap().contains("no-such-image"), "{outcome}");
    let never = unreachable.replace("network", "pull = \"never\", network");
    fails(kiln, &format!("script = \"true\"\n{never}"), "user", None);
    fails(kiln, &format!("command = [\"no-such-program\"]\n{BOX}"), "user", Some(127));
}

fn failures_of_a_process(kiln: &mut Kiln) {
    fails(kiln, &format!("script = \"exit 3\"\n{SHELL}"), "user", Some(3));
    // As a shell counts: 128 and the signal, which the message names.
    let outcome = fails(kiln, &format!("script = \"kill -9 $$\"\n{SHELL}"), "user", Some(137));
    assert!(outcome["message"].as_str().unwrap().contains("SIGKILL"), "{outcome}");
    ends(
        kiln,
        &format!("script = \"sleep 100\"\ntimeouts = {{ total = \"2s\" }}\n{SHELL}"),
        "timeout",
    );
    ends(
        kiln,
        &format!("script = \"echo x; sleep 100\"\ntimeouts = {{ stall = \"2s\" }}\n{SHELL}"),
        "stalled",
    );
    fails(kiln, &format!("command = [\"no-such-program\"]\n{SHELL}"), "user", Some(127));
}

fn a_cancelled_job_ends(kiln: &mut Kiln) {
    for place in [BOX, SHELL] {
        let build = kiln.submit(&format!(
            "[[jobs]]\nname = \"long\"\nscript = \"echo begun; sleep 100\"\n{place}"
        ));
        let job = kiln.job(&build, "long");
        kiln.log_reaches(crate::harness::id(&job), "begun\n".len());
        kiln.cli(&["cancel", &build]);
        assert_eq!(kiln.done(&build)["build"]["state"], "cancelled");
    }
}
