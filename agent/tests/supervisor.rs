//! A supervisor as a process of its own, with real processes below it.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use common::{
    LIMIT, contain, is_alive, lease, log, number, other_agent, run, run_in, script, script_spec,
    task, until,
};
use kiln_agent::{
    backend,
    cgroup::{Limits, Want},
    run::Run,
    supervisor::{Ending, Exit, Task, Work},
};
use kiln_core::{outcome::FailureKind, spec::JobSpec};
use tokio::time::timeout;

async fn end(run: &Run, task: Task) -> Exit {
    timeout(LIMIT, run.spawn(task)).await.expect("it ends").expect("its supervisor lives")
}

fn with(mut task: Task, new: kiln_agent::cgroup::Containment) -> Task {
    let Work::Process { containment, .. } = &mut task.work else { unreachable!() };
    *containment = new;
    task
}

#[tokio::test]
async fn exit_codes_and_signals_are_told_apart() {
    for (text, code, signal) in
        [("exit 0", Some(0), None), ("exit 3", Some(3), None), ("kill -SEGV $$", None, Some(11))]
    {
        let (_dir, run) = run();
        let exit = end(&run, script(&run, text)).await;
        assert_eq!((exit.ending, exit.code, exit.signal), (Ending::Exited, code, signal), "{text}");
    }
}

#[tokio::test]
async fn a_program_that_is_missing_is_the_users_error() {
    let (_dir, run) = run();
    let failure = end(&run, task(&run, &["no-such-program"])).await.into_result().unwrap_err();
    assert_eq!((failure.kind, failure.exit_code), (FailureKind::User, Some(127)));
    assert!(failure.message.contains("no-such-program"), "{failure}");
}

#[tokio::test]
async fn a_child_that_reopens_and_truncates_its_stderr_loses_nothing() {
    let (_dir, run) = run();
    let text = "echo a; : >/dev/stderr; echo b >&2; : >/dev/stdout; exec 2>/dev/stderr; echo c >&2; \
                (echo d >/proc/self/fd/1); exec >/dev/stdout; echo e";
    let exit = end(&run, script(&run, text)).await;
    assert_eq!(exit.code, Some(0));
    assert_eq!(log(&run), "a\nb\nc\nd\ne\n");
}

#[tokio::test]
async fn the_order_of_both_outputs_is_kept() {
    let (_dir, run) = run();
    let text = "i=0; while [ $i -lt 500 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done";
    end(&run, script(&run, text)).await;
    let wanted: String = (0..500).flat_map(|i| [format!("o{i}\n"), format!("e{i}\n")]).collect();
    assert_eq!(log(&run), wanted);
}

#[tokio::test]
async fn what_the_agent_says_before_and_after_is_in_the_log_and_stages_point_into_it() {
    let (_dir, run) = run();
    run.stage("checkout").await.unwrap();
    run.say("cloning").await.unwrap();
    run.stage("script").await.unwrap();
    end(&run, script(&run, "echo job")).await;
    run.stage("artifacts").await.unwrap();
    run.say("done").await.unwrap();
    assert_eq!(log(&run), "cloning\njob\ndone\n");
    let stages = fs::read_to_string(run.folder.stages()).unwrap();
    let stages: Vec<kiln_agent::run::StageMark> =
        stages.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let offsets: Vec<_> = stages.iter().map(|mark| (mark.name.as_str(), mark.offset)).collect();
    assert_eq!(offsets, [("checkout", 0), ("script", 8), ("artifacts", 12)]);
}

#[tokio::test]
async fn beyond_the_cap_one_line_stands_and_the_job_goes_on() {
    let (_dir, run) = run();
    let task = Task { log_bytes: 1_000, ..script(&run, "yes | head -c 3000000; exit 4") };
    assert_eq!(end(&run, task).await.code, Some(4));
    let log = log(&run);
    assert_eq!(log.matches("[kiln] the log is cut here").count(), 1);
    assert!(log.len() < 1_200, "{}", log.len());
}

#[tokio::test]
async fn silence_ends_a_job_and_output_keeps_it() {
    let (_dir, quiet) = run();
    let task = Task { stall_ms: 300, ..script(&quiet, "echo begin; sleep 60") };
    let failure = end(&quiet, task).await.into_result().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Stalled);
    assert_eq!(failure.message, "no output for 0.3 s");

    let (_dir, busy) = run();
    let text = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done";
    let task = Task { stall_ms: 1_000, ..script(&busy, text) };
    assert_eq!(end(&busy, task).await.code, Some(0));
}

/// A grandchild in a session of its own, which ignores TERM and holds the output open.
const ESCAPE: &str =
    "setsid sh -c 'trap \"\" TERM; echo child $$; while :; do sleep 1; done' & wait";

#[tokio::test]
async fn a_cancel_reaches_grandchildren_in_sessions_of_their_own() {
    for want in [Want::Auto, Want::PidNamespace, Want::ProcessGroup] {
        let (_dir, run) = run();
        let task = with(script(&run, ESCAPE), contain(&run, want, Limits::default()));
        let waiting = tokio::spawn({
            let run = run.clone();
            async move { end(&run, task).await }
        });
        until("the grandchild runs", || number(&run, "child ").is_some()).await;
        run.cancel.cancel();
        let exit = waiting.await.unwrap();
        assert_eq!(exit.ending, Ending::Cancelled, "{want:?}");
        assert!(!marked(&run), "{want:?}");
    }
}

/// Some process of this lease lives.
fn marked(run: &Run) -> bool {
    let marker = format!("KILN_LEASE={}", run.lease);
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.into_iter().any(|entry| {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        environ.split(|&byte| byte == 0).any(|variable| variable == marker.as_bytes())
    })
}

#[tokio::test]
async fn what_a_job_leaves_behind_is_killed_at_its_end() {
    let (_dir, run) = run();
    let text = "setsid sleep 300 & echo child $!; echo done";
    let begin = Instant::now();
    let exit = end(&run, script(&run, text)).await;
    assert_eq!(exit.code, Some(0));
    assert!(!is_alive(number(&run, "child ").unwrap()));
    assert!(begin.elapsed() < LIMIT / 3, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_cancelled_job_has_its_grace_time() {
    let (_dir, mut run) = run();
    run.grace_ms = 20_000;
    let text = "trap 'echo cleaning; sleep 0.3; echo clean; exit 9' TERM; echo up; while :; do sleep 0.1; done";
    let task = script(&run, text);
    let waiting = tokio::spawn({
        let run = run.clone();
        async move { end(&run, task).await }
    });
    until("it runs", || log(&run).contains("up")).await;
    run.cancel.cancel();
    let exit = waiting.await.unwrap();
    assert_eq!((exit.ending, exit.code), (Ending::Cancelled, Some(9)));
    assert!(log(&run).ends_with("cleaning\nclean\n"), "{}", log(&run));
}

#[tokio::test]
async fn a_supervisor_killed_leaves_no_process_and_an_infra_failure() {
    for want in [Want::Auto, Want::ProcessGroup] {
        let (_dir, run) = run();
        let task = with(script(&run, ESCAPE), contain(&run, want, Limits::default()));
        let waiting = tokio::spawn({
            let run = run.clone();
            async move { run.spawn(task).await }
        });
        until("the grandchild runs", || number(&run, "child ").is_some()).await;
        signal(supervisor(&run), "KILL");
        let failure = timeout(LIMIT, waiting).await.unwrap().unwrap().unwrap_err();
        assert_eq!(failure.kind, FailureKind::Infra, "{want:?}");
        assert!(!is_alive(number(&run, "child ").unwrap()), "{want:?}");
        let again = timeout(LIMIT, run.reattach(&handle(&run))).await.unwrap().unwrap_err();
        assert_eq!(again.kind, FailureKind::Infra);
    }
}

#[tokio::test]
async fn a_stray_term_of_the_supervisor_does_not_end_the_job() {
    let (_dir, run) = run();
    let task = script(&run, "echo up; while [ ! -e go ]; do sleep 0.05; done; exit 6");
    let waiting = tokio::spawn({
        let run = run.clone();
        async move { end(&run, task).await }
    });
    until("it runs", || log(&run).contains("up")).await;
    signal(supervisor(&run), "TERM");
    fs::write(run.workspace().join("go"), "").unwrap();
    assert_eq!(waiting.await.unwrap().code, Some(6));
}

#[tokio::test]
async fn a_job_that_was_given_up_before_it_began_never_begins() {
    let (_dir, run) = run();
    fs::write(run.dir().join("cancel"), "").unwrap();
    let exit = end(&run, script(&run, "echo begun")).await;
    assert_eq!((exit.ending, exit.code), (Ending::Cancelled, None));
    assert_eq!(log(&run), "");
}

fn handle(run: &Run) -> String {
    run.folder.remembered().unwrap().expect("adoption needs a handle")
}

fn supervisor(run: &Run) -> i32 {
    let text = fs::read_to_string(run.dir().join("supervisor.pid")).unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

fn signal(pid: i32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn the_job_survives_its_agent() {
    let (_dir, run) = run();
    let text = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.005; done; exit 7";
    let spec = JobSpec { backend: "shell".to_owned(), ..script_spec(text) };
    let mut agent = other_agent(&run, spec, &backend::Config::default()).spawn().unwrap();
    until("the job prints", || log(&run).contains("line 3\n")).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    let exit = timeout(LIMIT, run.reattach(&handle(&run))).await.unwrap().unwrap();
    assert_eq!((exit.ending, exit.code), (Ending::Exited, Some(7)));
    let wanted: String = (0..300).flat_map(|i| [format!("line {i}\n")]).collect();
    assert_eq!(log(&run), wanted);
    let later = timeout(LIMIT, run.reattach(&handle(&run))).await.unwrap().unwrap();
    assert_eq!(later, exit, "it is told as often as asked");
}

#[tokio::test]
async fn a_lease_has_one_supervisor_ever() {
    let (_dir, run) = run();
    let first = end(&run, script(&run, "echo once; exit 5")).await;
    let second = end(&run, script(&run, "echo twice; exit 6")).await;
    assert_eq!(first, second);
    assert_eq!(log(&run), "once\n");
    let spec = run.dir().join("supervisor.json");
    let third = Command::new(&run.supervisor).arg("supervise").arg(spec).output().unwrap();
    assert!(!third.status.success());
    assert_eq!(log(&run), "once\n");
}

#[tokio::test]
async fn files_of_the_lease_are_nobody_elses() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, run) = run();
    end(&run, script(&run, "umask; echo x")).await;
    assert_eq!(log(&run), "0022\nx\n");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(run.folder.spool_dir()), 0o700);
    for file in ["supervisor.json", "exit.json", "supervisor.pid", "supervisor.err"] {
        assert_eq!(mode(run.dir().join(file)), 0o600, "{file}");
    }
    assert_eq!(mode(run.folder.spool("main")), 0o600);
}

#[tokio::test]
async fn a_full_disk_holds_the_job_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |options: &str| {
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "kiln-test"])
            .arg(dir.path())
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !mount("size=256k,mode=700") {
        println!("skipped: this user can't mount a small file system");
        return;
    }
    let run = run_in(dir.path(), lease());
    let full = async {
        let written = || fs::metadata(run.folder.spool("main")).map_or(0, |meta| meta.len());
        until("the disk is full", || written() > 100_000).await;
        mount("remount,size=8m,mode=700")
    };
    let task = script(&run, "seq 1 200000");
    let (ended, grown) =
        timeout(LIMIT, async { tokio::join!(run.spawn(task), full) }).await.unwrap();
    let said = fs::read(run.folder.spool("main")).unwrap();
    assert!(Command::new("umount").args(["-l"]).arg(dir.path()).status().unwrap().success());
    assert!(grown, "the file system could not grow");
    ended.unwrap().into_result().unwrap();
    let lines = (1..=200_000).fold(String::new(), |lines, line| lines + &format!("{line}\n"));
    assert_eq!(said.len(), lines.len());
    assert!(said == lines.as_bytes(), "the log is not what was printed");
}

#[tokio::test]
async fn memory_and_process_limits_bite_where_they_are_offered() {
    let (_dir, first) = run();
    let features = kiln_agent::cgroup::Host::detect(Want::Auto).features();
    if !features.contains("memory-limit") || !features.contains("pids-limit") {
        println!("skipped: no limits are offered here: {features:?}");
        return;
    }
    let limits = Limits { memory_bytes: 32 << 20, ..Limits::default() };
    let hog = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}";
    let task = with(script(&first, hog), contain(&first, Want::Auto, limits));
    let failure = end(&first, task).await.into_result().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Oom, "{failure} {}", log(&first));

    let (_dir, second) = run();
    let task = with(script(&second, "kill -KILL $$"), contain(&second, Want::Auto, limits));
    let failure = end(&second, task).await.into_result().unwrap_err();
    assert_eq!(failure.kind, FailureKind::User, "a plain kill is no lack of memory");

    let (_dir, third) = run();
    let limits = Limits { pids: 5, ..Limits::default() };
    let text = "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; echo all";
    let task = with(script(&third, text), contain(&third, Want::Auto, limits));
    assert_ne!(end(&third, task).await.code, Some(0));
    assert!(log(&third).contains("fork"), "{}", log(&third));
}

#[tokio::test]
async fn much_output_arrives_whole_and_fast() {
    let (_dir, run) = run();
    let task = script(&run, "head -c 200000000 /dev/zero");
    let begin = Instant::now();
    assert_eq!(end(&run, task).await.code, Some(0));
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!(fs::metadata(run.folder.spool("main")).unwrap().len(), 200_000_000);
    println!("200 MB of output in {seconds:.2} s: {:.0} MB/s", 200.0 / seconds);
}

#[tokio::test]
async fn an_exclusive_job_ends_by_itself_without_a_word_of_the_server() {
    let (_dir, mut run) = run();
    run.lifeline_ms = 1_000;
    let text = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.1; done";
    let task = script(&run, text);
    let waiting = tokio::spawn({
        let run = run.clone();
        async move { end(&run, task).await }
    });
    until("it runs", || log(&run).contains('3')).await;
    let passed_on = Instant::now();
    for mark in 1..=8 {
        run.folder.hear(mark).unwrap();
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(!waiting.is_finished(), "it ended although the server answered");
    let exit = waiting.await.unwrap();
    assert_eq!(exit.ending, Ending::Forsaken);
    assert!(passed_on.elapsed() < LIMIT / 2);
    assert_eq!(exit.into_result().unwrap_err().kind, FailureKind::Lost);
}
