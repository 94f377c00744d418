//! kill -9 in the middle of a job: it runs once, its log has no gap and no byte twice, its exit code arrives.

use std::{thread::sleep, time::Duration};

use serde_json::json;

use crate::harness::{BUILD, Kiln, id, on_both_databases};

on_both_databases!(
    a_process_survives_its_agent,
    a_process_survives_its_server,
    a_container_survives_its_agent,
    a_container_survives_its_server,
    a_process_survives_both,
    a_child_that_truncates_its_stderr_loses_nothing,
);

const LINES: usize = 1_500;
const BOX: &str = "container = { image = \"@BUSYBOX@\", network = \"none\" }";
const SHELL: &str = "backend = \"shell\"";

/// A line every few milliseconds, then an exit code of its own.
fn counting(place: &str) -> String {
    format!(
        "[[jobs]]\nname = \"count\"\nscript = \"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.004; done; exit 7\"\n{place}\n"
    )
}

fn expected() -> Vec<u8> {
    (0..LINES).fold(String::new(), |log, i| log + &format!("line {i}\n")).into_bytes()
}

/// Runs the counting job, strikes in the middle of it, and compares everything.
fn survives(kiln: &mut Kiln, place: &str, strike: fn(&mut Kiln)) {
    let build = kiln.submit(&counting(place));
    let job = id(&kiln.job(&build, "count")).to_owned();
    let mut follower = kiln.background("follow", &["logs", "-f", &job]);
    let mut watcher = kiln.background("watch", &["watch", &build]);
    kiln.log_reaches(&job, 2_000);
    assert_eq!(kiln.job(&build, "count")["state"], "running", "struck too late to prove anything");

    strike(kiln);

    let seen = kiln.done(&build)["jobs"][0].clone();
    assert_eq!(seen["state"], "failed", "{seen:#}");
    assert_eq!(seen["outcome"]["failure"], "user", "{seen:#}");
    assert_eq!(seen["outcome"]["exit_code"], json!(7), "{seen:#}");
    assert_eq!((&seen["attempt"], &seen["round"]), (&json!(1), &json!(1)), "{seen:#}");
    kiln.log_reaches(&job, expected().len());
    same(&kiln.log(&job), &expected());
    // Readers that were there all the time saw the same, and ended.
    assert!(follower.wait(BUILD).success(), "{}", follower.said());
    same(&follower.out(), &expected());
    assert_eq!(watcher.wait(BUILD).code(), Some(1), "{}", watcher.said());
}

/// Names the first difference: a diff of thousands of lines helps nobody.
fn same(seen: &[u8], wanted: &[u8]) {
    let differs = seen.iter().zip(wanted).position(|(a, b)| a != b);
    let at = differs.unwrap_or_else(|| seen.len().min(wanted.len()));
    let near = |log: &[u8]| {
        String::from_utf8_lossy(&log[at.saturating_sub(20)..log.len().min(at + 20)]).into_owned()
    };
    assert!(
        seen == wanted,
        "the logs differ at byte {at} ({} and {} bytes): {:?}, wanted {:?}",
        seen.len(),
        wanted.len(),
        near(seen),
        near(wanted)
    );
}

fn kill_agent(kiln: &mut Kiln) {
    kiln.kill_agent();
    // Time in which the job goes on alone.
    sleep(Duration::from_secs(1));
    kiln.start_agent();
}

fn kill_server(kiln: &mut Kiln) {
    kiln.kill_server();
    sleep(Duration::from_secs(1));
    kiln.start_server();
}

fn a_process_survives_its_agent(kiln: &mut Kiln) {
    survives(kiln, SHELL, kill_agent);
}

fn a_process_survives_its_server(kiln: &mut Kiln) {
    survives(kiln, SHELL, kill_server);
}

fn a_container_survives_its_agent(kiln: &mut Kiln) {
    survives(kiln, BOX, kill_agent);
}

fn a_container_survives_its_server(kiln: &mut Kiln) {
    survives(kiln, BOX, kill_server);
}

fn a_process_survives_both(kiln: &mut Kiln) {
    survives(kiln, SHELL, |kiln| {
        kiln.kill_agent();
        kiln.kill_server();
        sleep(Duration::from_secs(1));
        kiln.start_server();
        kiln.start_agent();
    });
}

fn a_child_that_truncates_its_stderr_loses_nothing(kiln: &mut Kiln) {
    for place in [SHELL, BOX] {
        let script = "echo one; echo two >&2; : > /dev/stderr; echo three > /proc/self/fd/2; : > /dev/stdout; echo four";
        let (job, log) = kiln.run(&format!("script = \"{script}\"\n{place}"));
        assert_eq!(job["state"], "succeeded", "{job:#}");
        assert_eq!(String::from_utf8_lossy(&log), "one\ntwo\nthree\nfour\n");
    }
}
