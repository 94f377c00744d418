//! Which layer wins, and what is said of what is wrong.

use kiln_agent::Config as Agent;
use kiln_server::Config as Server;

use super::*;

const NONE: &[(&str, Value)] = &[];

fn settings(file: &str, variables: &[(&str, &str)], flags: Flags) -> Settings {
    let (file, wrong) = match layers::file("kiln.toml", file) {
        Ok(leaves) => (leaves, vec![]),
        Err(wrong) => (vec![], wrong),
    };
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Settings { file, variables: variables.iter().map(own).collect(), flags: flags.0, wrong }
}

/// What is refused, one a line.
fn refused(settings: Settings) -> String {
    let failure = settings.finish().unwrap_err();
    assert_eq!(failure.message, "the configuration can't be used");
    let lines = failure.fields.into_iter().map(|(field, why)| format!("{field}: {why}"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_flag_beats_a_variable_a_variable_the_file_and_the_file_what_is_built_in() {
    let file = "connections = 2\nsweep_ms = 2\nlisten = \"127.0.0.1:2\"\n[limits]\nstreams = 2\n";
    let variables = [
        ("KILN_SWEEP_MS", "3"),
        ("KILN_LISTEN", "127.0.0.1:3"),
        ("KILN_LIMITS_STREAMS", "3"),
        ("KILN_AUTH", "false"),
        ("KILN_SERVER", "http://other:1"),
    ];
    let flags = Flags::default().set("listen", "--listen", Some("127.0.0.1:4"));
    let mut settings = settings(file, &variables, flags);
    let part: Part<Server> = settings.part("", "KILN_", &[("data", "/base".into())]);
    settings.finish().unwrap();
    let Server { connections, sweep_ms, listen, limits, auth, data_dir, .. } = &part.config;
    assert_eq!((*connections, *sweep_ms, limits.streams, *auth), (2, 3, 3, false));
    assert_eq!((listen.port(), data_dir.to_str()), (4, Some("/base")));
    let source = |field: &str| part.sources.get(field).map(ToString::to_string);
    assert_eq!(source("connections").as_deref(), Some("kiln.toml:1"));
    assert_eq!(source("limits.streams").as_deref(), Some("KILN_LIMITS_STREAMS"));
    assert_eq!(source("listen").as_deref(), Some("--listen"));
    assert_eq!((source("data"), source("grace_ms")), (None, None));
}

#[test]
fn everything_that_is_wrong_is_said_at_once_with_its_place_and_without_its_value() {
    let file =
        "lisen = 1\ngrace_ms = 5\nconnections = \"hush\"\n\n[limits]\nstreams = -1\n[lmits]\n";
    let variables =
        [("KILN_DURABLE", "perhaps"), ("KILN_SWEEP_MS", "0"), ("KILN_SECRETS_KEY_FILE", "/k")];
    let flags = Flags::default().set("listen", "--listen", Some("here")).set(
        "database",
        "--database",
        Some("mysql://a:hush@b"),
    );
    let mut settings = settings(file, &variables, flags);
    let _: Part<Server> = settings.part("", "KILN_", NONE);
    let said = refused(settings);
    assert!(!said.contains("hush"), "{said}");
    let known = said.lines().map(|line| line.split("; expected").next().unwrap());
    insta::assert_snapshot!(known.collect::<Vec<_>>().join("\n"), @r"
    durable (KILN_DURABLE): must be true or false
    connections (kiln.toml:3): must be a whole number
    limits.streams (kiln.toml:6): must be a whole number
    lisen (kiln.toml:1): is not known
    lmits (kiln.toml:7): is not known
    listen (--listen): must be an address with a port, as 127.0.0.1:7420
    database (--database): must be like sqlite:PATH or postgres://…
    sweep_ms (KILN_SWEEP_MS): must be at least 1
    grace_ms (kiln.toml:2): must be at least three heartbeats: one may be lost, one may be late
    ");
}

#[test]
fn a_file_that_can_t_be_read_is_named_with_the_line() {
    let mut settings = settings("listen = 1\nlisten = 2\n[limits\n", &[], Flags::default());
    let _: Part<Server> = settings.part("", "KILN_", NONE);
    insta::assert_snapshot!(refused(settings), @r"
    kiln.toml:3: unclosed table, expected `]`
    kiln.toml:2: duplicate key
    ");
}

#[test]
fn one_file_holds_a_server_and_its_agent() {
    let file = "sweep_ms = 7\n[agent]\nname = \"mine\"\n[agent.labels]\ndisk = \"ssd\"\n\
                [agent.backends.docker]\nenabled = false\n";
    let variables =
        [("KILN_AGENT_LABELS", "{ os = \"linux\" }"), ("KILN_AGENT_SERVER", "http://x:1")];
    let flags = Flags::default().entries(
        "agent.labels",
        "--label",
        vec![("rack".to_owned(), "3".to_owned())],
    );
    let mut settings = settings(file, &variables, flags);
    let agent: Part<Agent> = settings.part("agent.", "KILN_AGENT_", &[("name", "local".into())]);
    let server: Part<Server> = settings.part("", "KILN_", NONE);
    assert_eq!((server.config.sweep_ms, agent.config.backends.docker.enabled), (7, false));
    let labels: Vec<_> = agent.config.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["disk=ssd", "os=linux", "rack=3"]);
    settings.reserve(&agent, &["name", "server", "data"], "is decided");
    insta::assert_snapshot!(refused(settings), @r"
    agent.name (kiln.toml:3): is decided
    agent.server (KILN_AGENT_SERVER): is decided
    ");
}

#[test]
fn what_is_in_effect_is_shown_as_a_file_without_secrets() {
    let file = "database = \"postgres://k:hush@db/k\"\n[secrets]\nkey = \"hush\"\n";
    let mut settings = settings(file, &[("KILN_LIMITS_STREAMS", "5")], Flags::default());
    let part: Part<Server> = settings.part("", "KILN_", NONE);
    let text = show::text(part.shown());
    assert!(!text.contains("hush"), "{text}");
    let lines: Vec<_> = text.lines().filter(|line| line.contains(" # ")).collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    database = "postgres://k:…@db/k" # kiln.toml:1
    streams = 5 # KILN_LIMITS_STREAMS
    key = "…" # kiln.toml:3
    "#);
    assert!(text.contains("\n# key_file is not set\n"), "{text}");
    assert!(text.contains("\n\n[limits]\ncalls_burst = 5000\n"), "{text}");
    // It is a file again, but for what is hidden.
    let again: Server = toml::from_str(&text).unwrap();
    assert_eq!(again.limits, part.config.limits);
}

/// Each field has a row that names its variable.
fn check<T: Config>(prefix: &str, section: &str, row: impl Fn(&str) -> String) {
    for (field, _) in layers::fields(&T::default()) {
        let (name, variable) = (format!("{section}{field}"), layers::variable(prefix, &field));
        assert!(row(&name).contains(&format!("`{variable}`")), "{name}: {variable}");
    }
}

#[test]
fn every_field_is_documented_with_its_variable() {
    let page = include_str!("../../../docs/configuration.md");
    let row = |field: &str| {
        let begin = format!("| `{field}` |");
        page.lines().filter(|line| line.starts_with(&begin)).collect::<Vec<_>>().join("\n")
    };
    check::<Server>("KILN_", "", row);
    check::<Agent>("KILN_AGENT_", "", row);
    check::<crate::log::Log>("KILN_LOG_", "log.", row);
}
