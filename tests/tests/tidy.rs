//! The invariants of ARCHITECTURE.md that can be read from files.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file: beyond, it is two rooms.
const MAX_FILE_LINES: usize = 600;

type Files = Vec<(String, String)>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn visit(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            visit(&path, found);
        } else if path.is_file() {
            found.push(path);
        }
    }
}

/// All files below the root with this ending, as (path relative to it, text).
fn files(ending: &str) -> Files {
    let root = root();
    let mut found = vec![];
    visit(&root, &mut found);
    let mut files: Files = found
        .into_iter()
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(&root).unwrap().to_string_lossy().into_owned(), text)
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no file ends with {ending}");
    files
}

fn is_test(path: &str) -> bool {
    path.starts_with("tests/")
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("/fixture.rs")
        || path.contains("/examples/")
        || path.contains("/benches/")
}

/// Rust files that are not tests, without their inline test modules.
fn sources() -> Files {
    let code = |text: &str| text.split("#[cfg(test)]\nmod ").next().unwrap().to_owned();
    files(".rs")
        .into_iter()
        .filter(|(path, _)| !is_test(path))
        .map(|(path, text)| (path, code(&text)))
        .collect()
}

fn below(sources: Files, prefixes: &[&str]) -> Files {
    sources
        .into_iter()
        .filter(|(path, _)| prefixes.iter().any(|prefix| path.starts_with(prefix)))
        .collect()
}

/// Lines of code that contain `needle`, comments left out, as `path:line`, but for those below `allowed`.
fn lines_with(sources: &Files, needle: &str, allowed: &[&str]) -> Vec<String> {
    let mut found = vec![];
    for (path, text) in
        sources.iter().filter(|(path, _)| !allowed.iter().any(|prefix| path.starts_with(prefix)))
    {
        for (number, line) in text.lines().enumerate() {
            if line.contains(needle) && !line.trim_start().starts_with("//") {
                found.push(format!("{path}:{}: {needle}", number + 1));
            }
        }
    }
    found
}

fn none(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// Names of the crates that a manifest's `[dependencies]` lists.
fn dependencies(folder: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    manifest["dependencies"].as_table().unwrap().keys().cloned().collect()
}

#[test]
fn i1_the_core_depends_on_data_crates_only() {
    let allowed = ["serde", "serde_json", "sha2", "thiserror", "uuid", "zeroize"];
    let found: Vec<_> = dependencies("server/core")
        .into_iter()
        .filter(|name| !allowed.contains(&name.as_str()))
        .collect();
    none(&found);
    let core = below(sources(), &["server/core/"]);
    for needle in [
        "std::fs",
        "std::net",
        "std::env",
        "std::thread",
        "SystemTime",
        "Instant::now",
        "now_v7",
        "new_v4",
    ] {
        none(&lines_with(&core, needle, &[]));
    }
}

#[test]
fn i2_the_wire_is_named_at_the_edges_only() {
    let allowed =
        ["proto/", "server/src/grpc/", "server/src/serve", "agent/src/connection", "sdk/", "cli/"];
    none(&lines_with(&sources(), "kiln_proto", &allowed));
    none(&lines_with(&sources(), "kiln_sdk::v1", &allowed));
}

#[test]
fn i3_the_edges_of_the_server_do_not_touch_the_rows() {
    let rooms = ["server/src/grpc", "server/src/http", "server/src/session", "server/src/forge"];
    let edges = below(sources(), &rooms);
    for needle in ["sea_orm", "store::sql", "store::Tx", "dyn Store", "SharedStore"] {
        none(&lines_with(&edges, needle, &[]));
    }
}

#[test]
fn i4_a_job_row_changes_in_one_function() {
    none(&lines_with(&sources(), ".save_jobs(", &["server/src/store/"]));
}

#[test]
fn i5_nobody_reads_the_clock_but_the_clock() {
    for needle in ["SystemTime::now", "now_utc", "Utc::now"] {
        none(&lines_with(&sources(), needle, &["server/src/clock.rs", "agent/src/clock.rs"]));
    }
}

#[test]
fn i6_agent_and_server_do_not_know_each_other() {
    for (crate_folder, stranger) in [
        ("agent", "kiln-server"),
        ("agent", "sea-orm"),
        ("server", "kiln-agent"),
        ("server", "bollard"),
        ("sdk", "bollard"),
        ("sdk", "sea-orm"),
    ] {
        assert!(
            !dependencies(crate_folder).contains(&stranger.to_owned()),
            "{crate_folder} depends on {stranger}"
        );
    }
}

#[test]
fn i7_no_unbounded_channel_and_no_bare_spawn() {
    for needle in ["unbounded_channel", "tokio::spawn(", "tokio::task::spawn(", "Box::leak"] {
        none(&lines_with(&sources(), needle, &[]));
    }
}

#[test]
fn transactions_are_opened_in_one_file_and_notify_is_not_in_them() {
    let sources = sources();
    for needle in ["begin_with", ".transaction(", "BEGIN"] {
        none(&lines_with(&sources, needle, &["server/src/store/sql/tx", "migrations/"]));
    }
    none(&lines_with(&sources, "NOTIFY", &["server/src/wake/postgres"]));
}

#[test]
fn files_are_short_and_say_what_they_own() {
    let mut bad = vec![];
    for (path, text) in files(".rs") {
        let lines = text.lines().count();
        if lines > MAX_FILE_LINES {
            bad.push(format!("{path} has {lines} lines, at most {MAX_FILE_LINES} are allowed"));
        }
        if !text.starts_with("//!") && !path.ends_with("tests.rs") {
            bad.push(format!("{path} does not begin with a //! that says what it owns"));
        }
    }
    none(&bad);
}

#[test]
fn no_stub_is_left() {
    let sources: Files =
        files(".rs").into_iter().filter(|(path, _)| !path.ends_with("tidy.rs")).collect();
    for needle in ["todo!(", "unimplemented!(", "#[ignore", "dbg!("] {
        none(&lines_with(&sources, needle, &[]));
    }
}

#[test]
fn a_migration_is_one_file_and_additive() {
    let migrations = below(files(".rs"), &["migrations/src/m"]);
    assert!(!migrations.is_empty());
    let list = fs::read_to_string(root().join("migrations/src/lib.rs")).unwrap();
    for (path, text) in &migrations {
        let module = Path::new(path).file_stem().unwrap().to_string_lossy().into_owned();
        assert!(list.contains(&module), "{module} is not in the list of migrations");
        for needle in
            ["drop_column", "rename_column", "rename_table", "modify_column", "DROP COLUMN"]
        {
            assert!(!text.contains(needle), "{path}: {needle} would break the version before");
        }
    }
}

#[test]
fn every_message_field_and_call_is_documented() {
    let mut bad = vec![];
    for (path, text) in files(".proto") {
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        for (number, line) in lines.iter().enumerate() {
            let declares =
                line.ends_with(';') && line.contains(" = ") && !line.starts_with("syntax");
            let opens = ["message ", "enum ", "service ", "rpc ", "oneof "]
                .iter()
                .any(|word| line.starts_with(word));
            if (declares || opens) && !lines[number - 1].starts_with("//") {
                bad.push(format!("{path}:{}: {line}", number + 1));
            }
        }
    }
    none(&bad);
}

/// Paths in ARCHITECTURE.md exist: it leads a newcomer through real rooms.
#[test]
fn the_architecture_names_files_that_exist() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut checked = 0;
    for word in text.split('`').skip(1).step_by(2) {
        let strange =
            word.contains([' ', '<', '*', '{', '(', ':', '$', '\n']) || word.starts_with('/');
        if word.contains('/') && !strange && !word.starts_with("kiln/") {
            assert!(
                root().join(word).exists(),
                "ARCHITECTURE.md names {word}, which does not exist"
            );
            checked += 1;
        }
    }
    assert!(checked > 20, "ARCHITECTURE.md names only {checked} paths");
}

#[test]
fn the_repository_speaks_of_kiln_alone() {
    let words = [
        concat!("/wo", "rk/"),
        concat!("sub", "agent"),
        concat!("crates", ".io"),
        concat!("python", "hosted"),
    ];
    for ending in [".rs", ".md", ".toml", ".proto", "Makefile", ".sh"] {
        for (path, text) in files(ending) {
            for word in words {
                assert!(!text.contains(word), "{path} contains {word:?}");
            }
        }
    }
}
