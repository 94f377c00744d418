//! Every verb says what it takes.

use super::Context;

const VERBS: &[&[&str]] = &[
    &[],
    &["up"],
    &["server"],
    &["agent"],
    &["agent", "enroll"],
    &["migrate"],
    &["admin"],
    &["admin", "backup"],
    &["admin", "restore"],
    &["run"],
    &["submit"],
    &["list"],
    &["show"],
    &["watch"],
    &["logs"],
    &["cancel"],
    &["retry"],
    &["explain"],
    &["artifacts"],
    &["artifacts", "list"],
    &["artifacts", "get"],
    &["project"],
    &["project", "create"],
    &["project", "list"],
    &["project", "show"],
    &["project", "update"],
    &["project", "pause"],
    &["project", "resume"],
    &["secret"],
    &["secret", "set"],
    &["secret", "list"],
    &["secret", "delete"],
    &["secret", "reencrypt"],
    &["agents"],
    &["agents", "list"],
    &["agents", "show"],
    &["agents", "pause"],
    &["agents", "resume"],
    &["agents", "drain"],
    &["agents", "evict"],
    &["queue"],
    &["audit"],
    &["token"],
    &["token", "create"],
    &["token", "list"],
    &["token", "revoke"],
    &["token", "rotate"],
    &["completion"],
    &["config"],
    &["config", "list"],
    &["config", "use"],
    &["config", "set"],
    &["config", "show"],
    &["version"],
];

#[test]
fn every_verb_has_help_and_no_secret_is_an_argument() {
    let context = Context::new();
    for verb in VERBS {
        let help = context.out(&[verb, &["--help"][..]].concat());
        assert!(help.contains("Usage: kiln"), "{verb:?}: {help}");
        assert!(help.contains("--output <FORMAT>"), "{verb:?} lacks the global options");
        assert!(!help.contains("--token "), "a token in argv is seen by everyone: {verb:?}");
        assert!(!help.contains("--value"), "a secret in argv is seen by everyone: {verb:?}");
    }
}

#[test]
fn the_list_of_verbs() {
    let help = Context::new().out(&["--help"]);
    let commands = help.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
    insta::assert_snapshot!(commands, @r"
    up          Run server, database and one agent in one process
    server      Run a server
    agent       Run an agent, or enrol one
    migrate     Bring a database to this version's schema
    admin       Back up or restore the embedded database, on the machine of its server
    run         Run one command as a build and follow it
    submit      Submit a build file
    list        List builds
    show        Show a build and its jobs
    watch       Follow a build until it is done
    logs        Print the log of a job
    cancel      Cancel a build or one of its jobs
    retry       Run what did not succeed again
    explain     Say why a job waits or why it failed
    artifacts   List or download what jobs kept
    project     Manage projects
    secret      Manage secrets
    agents      Manage agents
    queue       Show what waits, project by project
    audit       Show what was done by whom
    ca          Manage the authority that certifies servers and agents
    token       Manage tokens
    completion  Print a completion script for a shell
    config      Manage contexts: names for servers
    version     Print the version
    ");
}

#[test]
fn completion_and_version() {
    let context = Context::new();
    assert!(context.out(&["completion", "bash"]).contains("_kiln"));
    insta::assert_snapshot!(context.kiln(&["version"]), @r"
    exit 0
    out: kiln 0.1.0 (agent protocol 1 to 1)
    ");
    insta::assert_snapshot!(context.kiln(&["--output", "json", "version"]), @r#"
    exit 0
    out: {
    out:  "protocol": {
    out:  "max": 1,
    out:  "min": 1
    out:  },
    out:  "version": "0.1.0"
    out: }
    "#);
}
