//! After jobs with secrets no trace of a value is left: not in the data folders, the database, the logs of the processes
//! (which tell everything they can), the stored logs, nor while they run in the process table or in what the engine tells.

use std::{
    collections::BTreeSet,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use aho_corasick::AhoCorasick;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    harness::{BUILD, Kiln, id, on_both_databases, variable},
    process::until,
};

on_both_databases!(no_trace_of_a_value_is_left);

/// Prints digests and values of both secrets, before and after the agent is killed.
const SCRIPT: &str = r"
tell() { for name in TOKEN ONCE; do sha256sum <$KILN_SECRETS/$name; cat $KILN_SECRETS/$name; echo; base64 $KILN_SECRETS/$name; done; }
tell; echo told once; i=0
while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); sleep 0.02; done
tell; echo told twice
";

/// A value that no other test has: `home` has a random name.
fn unique(home: &Path, name: &str) -> Vec<u8> {
    let digest = Sha256::digest(format!("{name} {}", home.display()));
    format!("hush.{name}.{}", hex(&digest[..20])).into_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// A value as it may stand somewhere: raw, as base64 at any alignment, in hexadecimal.
fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    let aligned = (0..3).map(|alignment| {
        let text = STANDARD.encode([&vec![0; alignment], value].concat()).into_bytes();
        text[4..text.len() - 4].to_vec()
    });
    aligned.chain([value.to_vec(), hex(value).into_bytes()]).collect()
}

/// Finds values, in whatever form.
#[derive(Clone)]
struct Search(AhoCorasick);

impl Search {
    fn of(values: &[&[u8]]) -> Self {
        let forms = values.iter().flat_map(|value| forms(value));
        Self(AhoCorasick::new(forms).unwrap())
    }

    fn hits(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }
}

/// Files below a folder that hold one of the values.
fn found_below(folder: &Path, values: &Search, except: &str) -> Vec<String> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name() != except {
                found.extend(found_below(&path, values, except));
            }
        } else if entry.file_type().is_ok_and(|kind| kind.is_file())
            && std::fs::read(&path).is_ok_and(|text| values.hits(&text))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Arguments and environments of all processes of this machine.
fn found_in_processes(values: &Search) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let files =
        processes.flat_map(|entry| ["cmdline", "environ"].map(|file| entry.path().join(file)));
    let holding = files.filter(|path| std::fs::read(path).is_ok_and(|text| values.hits(&text)));
    holding.map(|path| path.display().to_string()).collect()
}

fn inspected(lease: &str) -> Vec<u8> {
    let docker = |args: &[&str]| {
        let host = variable("KILN_TEST_DOCKER").unwrap();
        let output = Command::new("docker").args(args).env("DOCKER_HOST", host).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let label = format!("label=dev.kiln.lease={lease}");
    let ids = String::from_utf8(docker(&["ps", "-aq", "--filter", &label])).unwrap();
    docker(&["inspect", ids.trim()])
}

fn submit(kiln: &Kiln, text: &str, more: &[&str]) -> String {
    let path = kiln.path("secrets.toml");
    std::fs::write(&path, format!("version = 1\n{text}")).unwrap();
    let path = path.display().to_string();
    let build = kiln.json(&[&["submit", "-f", &path], more].concat());
    id(&build["build"]).to_owned()
}

/// Samples the process table until it is dropped.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<BTreeSet<String>>>,
}

impl Watch {
    fn start(values: Search) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut found = BTreeSet::new();
            while !stopped.load(Ordering::SeqCst) {
                found.extend(found_in_processes(&values));
                thread::sleep(Duration::from_millis(20));
            }
            found
        });
        Self { stop, thread: Some(thread) }
    }

    fn end(mut self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn no_trace_of_a_value_is_left(kiln: &mut Kiln) {
    // Outside of what is searched.
    let home = tempfile::tempdir().unwrap();
    let [token, once, control] = ["token", "once", "control"].map(|name| unique(home.path(), name));
    let values = Search::of(&[&token, &once]);
    let file = |name: &str, value: &[u8]| {
        std::fs::write(home.path().join(name), value).unwrap();
        home.path().join(name).display().to_string()
    };
    let (token_file, once_file) = (file("token", &token), file("once", &once));
    let set = ["secret", "set", "TOKEN", "--file", &token_file];
    if kiln.is_postgres() {
        let refused = String::from_utf8(kiln.try_cli(&set).stderr).unwrap();
        assert!(refused.contains("KILN_SECRETS_KEY"), "each server must have the same: {refused}");
        kiln.secrets_key = STANDARD.encode(Sha256::digest(home.path().display().to_string()));
    }
    // All that they can tell, from now on.
    kiln.kill_agent();
    kiln.kill_server();
    kiln.log = "trace";
    kiln.start_server();
    kiln.start_agent();
    let watch = Watch::start(values.clone());
    kiln.cli(&set);
    let image = variable("KILN_TEST_BUSYBOX").or_else(|| variable("KILN_TEST_IMAGE")).unwrap();
    let job = |name: &str, place: &str| {
        format!(
            "[[jobs]]\nname = \"{name}\"\nsecrets = [\"TOKEN\", \"ONCE\"]\nscript = '''{SCRIPT}'''\n{place}\n"
        )
    };
    let shell = job("shell", "backend = \"shell\"");
    let container = format!("container = {{ image = \"{image}\", network = \"none\" }}");
    let both = shell + &job("docker", &container);
    let build = submit(kiln, &both, &["--secret", &format!("ONCE=@{once_file}")]);
    let told = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
    for name in ["shell", "docker"] {
        let job = id(&until("a lease", BUILD, || {
            let job = kiln.job(&build, name);
            job["lease"].is_string().then_some(job)
        }))
        .to_owned();
        until("the first digests", BUILD, || {
            told(&kiln.try_cli(&["logs", &job]).stdout).contains("told once").then_some(())
        });
    }
    let lease = kiln.job(&build, "docker")["lease"].as_str().unwrap().to_owned();
    assert!(!values.hits(&inspected(&lease)), "the engine tells a value");
    kiln.kill_agent();
    // What the jobs printed waits in the spool until it is acknowledged; nothing else holds it.
    assert_eq!(found_below(&kiln.path("agent"), &values, "spool"), [""; 0]);
    kiln.start_agent();
    let seen = kiln.done(&build);

    for name in ["shell", "docker"] {
        let job = kiln.job(&build, name);
        assert_eq!((&job["state"], &job["attempt"]), (&"succeeded".into(), &1.into()), "{seen:#}");
        let job = id(&job).to_owned();
        until("the whole log", BUILD, || {
            told(&kiln.try_cli(&["logs", &job]).stdout).contains("told twice").then_some(())
        });
        let log = kiln.log(&job);
        assert!(!values.hits(&log), "{name} shows a value:\n{}", told(&log));
        for value in [&token, &once] {
            let digest = hex(&Sha256::digest(value));
            assert_eq!(told(&log).matches(&digest).count(), 2, "{name} had it:\n{}", told(&log));
            let masked = format!("\n{}\n", "*".repeat(value.len()));
            assert!(told(&log).matches(&masked).count() >= 2, "{name}:\n{}", told(&log));
        }
    }
    gone(kiln, &seen);
    assert_eq!(watch.end(), BTreeSet::new());
    everywhere_but(kiln, &values, &[]);

    the_search_finds_what_is_there(kiln, values, &told(&token), &told(&control));
}

/// The same secret in an artifact and in an environment, another word in a log.
fn the_search_finds_what_is_there(kiln: &Kiln, values: Search, token: &str, control: &str) {
    let script = format!("cp $KILN_SECRETS/TOKEN out; echo {control}");
    let control_job = format!(
        "[[jobs]]\nname = \"control\"\nbackend = \"shell\"\nsecrets = [\"TOKEN\"]\nscript = '{script}'\nartifacts = [\"out\"]\n"
    );
    let build = submit(kiln, &control_job, &[]);
    let seen = kiln.done(&build);
    gone(kiln, &seen);
    let blobs = found_below(&kiln.path("server"), &values, "");
    assert!(blobs.iter().any(|path| path.contains("artifacts")), "{blobs:?}");
    assert!(Search::of(&[control.as_bytes()]).hits(&kiln.log(id(&seen["jobs"][0]))));
    everywhere_but(kiln, &values, &blobs);
    let shown = Watch::start(values);
    let mut argument = Command::new("sleep").arg("3").env("SHOWN", token).spawn().unwrap();
    argument.wait().unwrap();
    assert!(!shown.end().is_empty(), "an environment is searched");
}

/// Waits until the agent has forgotten the leases of a build, spools included.
fn gone(kiln: &Kiln, seen: &Value) {
    for job in seen["jobs"].as_array().unwrap() {
        let lease = job["lease"].as_str().unwrap();
        until("the removal of a lease", BUILD, || {
            (!kiln.path("agent/leases").join(lease).exists()).then_some(())
        });
        let memory = std::fs::read_dir("/dev/shm").unwrap().flatten();
        let left: Vec<_> =
            memory.filter(|entry| entry.file_name().to_string_lossy().contains(lease)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn everywhere_but(kiln: &Kiln, values: &Search, except: &[String]) {
    let mut found = found_below(&kiln.path(""), values, "");
    found.retain(|path| !except.contains(path));
    assert_eq!(found, [""; 0]);
    assert!(!values.hits(&kiln.rows()), "the database holds a value");
    assert!(if kiln.is_postgres() {
        !kiln.rows().is_empty()
    } else {
        kiln.path("kiln.db").exists()
    });
}
