use super::*;

/// The documented examples are those that are tested.
const GUIDE: &str = include_str!("../../../docs/build-file.md");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn wrong(text: &str) -> String {
    let failure = parse("build.toml", text).unwrap_err();
    format!("{} / {}", failure.message, failure.hint.unwrap_or_default())
}

fn job(keys: &str) -> String {
    format!("version = 1\n[[jobs]]\nname = \"a\"\nscript = \"true\"\n{keys}\n")
}

#[test]
fn every_documented_build_file_is_read() {
    let mut pages = vec![PathBuf::from(ROOT).join("README.md")];
    for entry in std::fs::read_dir(format!("{ROOT}/docs")).unwrap() {
        pages.push(entry.unwrap().path());
    }
    let mut read = vec![];
    for page in pages.iter().filter(|page| page.extension().is_some_and(|end| end == "md")) {
        for example in examples(&std::fs::read_to_string(page).unwrap()) {
            if let Err(failure) = parse("build.toml", &example) {
                panic!("{}: {}\n{example}", page.display(), failure.message);
            }
            read.push(page.file_name().unwrap().display().to_string());
        }
    }
    for page in ["README.md", "build-file.md"] {
        assert!(read.iter().any(|name| name == page), "no example found in {page}: {read:?}");
    }
}

/// What a page shows as a build file: a block of TOML, or a here-document, that says its version.
fn examples(page: &str) -> Vec<String> {
    let (mut found, mut block, mut end) = (vec![], String::new(), None);
    for line in page.lines() {
        match &end {
            Some(mark) if line == mark => {
                end = None;
                found.push(std::mem::take(&mut block));
            }
            Some(_) => block = block + line + "\n",
            None if line == "```toml" => end = Some("```".to_owned()),
            None => end = line.split_once("<<").map(|(_, mark)| mark.trim_matches('\'').to_owned()),
        }
    }
    found.retain(|text| text.lines().any(|line| line.starts_with("version =")));
    found
}

#[test]
fn every_key_reaches_the_request() {
    let example = GUIDE.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let spec = parse("build-file.md", example).unwrap().spec;
    let text = format!("{spec:?}");
    // The guide's example sets each key to something that is not its default.
    for value in [
        "hello 1.2",
        "priority: 10",
        "4711",
        "example.org/hello.git",
        "\"main\"",
        "./configure",
        "-O2",
        "[\"gcc\", \"clang\"]",
        "build/*",
        "max_attempts: 2",
        "backoff_ms: 5000",
        "queue_ms: 7200000",
        "total_ms: 1800000",
        "stall_ms: 300000",
        "debian:bookworm",
        "pull: Missing",
        "network: None",
        "read_only: true",
        "67108864",
        "1000:1000",
        "\"ALL\"",
        "cpu_millis: 1500",
        "memory_bytes: 536870912",
        "pids: 200",
        "log_bytes: 10485760",
        "artifact_bytes: 209715200",
        "x86_64",
        "\"ssd\"",
        "min_cpu_millis: 2000",
        "min_memory_bytes: 4294967296",
        "min_disk_bytes: 10737418240",
        "\"--all\"",
        "allow_failure: true",
        "artifacts: true",
        "no_source: true",
        "PUBLISH_TOKEN",
        "priority: 5",
        "limit: 1",
        "\"docker\"",
        "\"shell\"",
    ] {
        assert!(text.contains(value), "{value} is missing in {text}");
    }
}

#[test]
fn errors_name_line_column_and_what_is_expected() {
    let cases = [
        "version = 2\njobs = []".to_owned(),
        "jobs = []".to_owned(),
        job("scirpt = \"x\""),
        job("timeouts = { total = \"10 minutes\" }"),
        job("resources = { memory = true }"),
        job("retry = { on = [\"rain\"] }"),
        job("needs = [{ jop = \"b\" }]"),
        job("source = { path = \".\" }"),
        job("container = { image = \"x\", network = \"host\" }"),
        "version = 1\n[[jobs]\n".to_owned(),
    ];
    let told: Vec<String> = cases.iter().map(|case| wrong(case)).collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    build.toml: version 2 is not known / this program reads `version = 1`
    build.toml:1:1: missing field `version` / see the documentation for every key and its form
    build.toml:5:1: unknown field `scirpt` / expected one of `name`, `needs`, `backend`, `script`, `command`, `env`, `matrix`, `allow_failure`, `priority`, `artifacts`, `retry`, `timeouts`, `constraints`, `resources`, `container`, `concurrency`, `source`, `no_source`, `secrets`
    build.toml:5:22: "10 minutes" is not a duration; write it like "90s", "10m" or "1h30m" / see the documentation for every key and its form
    build.toml:5:24: true is neither a text nor a number / see the documentation for every key and its form
    build.toml: job "a": retry.on: "rain" is not one of user, infra, timeout, stalled, oom, lost or dependency / see the documentation for every key and its form
    build.toml:5:9: unknown field `jop` / expected `job` or `artifacts`
    build.toml: job "a": a job's own source must be git / see the documentation for every key and its form
    build.toml:5:38: unknown variant `host` / expected `bridge` or `none`
    build.toml:2:8: unclosed array table / expected `]`
    "#);
}
