//! The verbs on a server without an agent: what is submitted waits, and can be looked at, cancelled and explained.

use super::Context;

const BUILD: &str = r#"
version = 1
title = "two"

[[jobs]]
name = "compile"
script = "make"

[[jobs]]
name = "test"
needs = ["compile"]
script = "make test"
"#;

#[test]
fn check_with_and_without_a_server() {
    for context in [Context::with_server(), Context::new()] {
        context.write("build.toml", BUILD);
        let told = context.kiln(&["submit", "--check"]);
        assert!(told.starts_with("exit 0\nout: build.toml is valid, 2 jobs\n"), "{told}");
        assert_eq!(
            told.contains("no server is reachable"),
            context.kiln(&["list"]).contains("exit 4")
        );
    }
}

#[test]
fn the_life_of_a_build_without_agents() {
    let context = Context::with_server();
    context.write("build.toml", BUILD);
    insta::assert_snapshot!(context.kiln(&["submit", "--key", "k"]), @r"
    exit 0
    out: bld_[ID]
    ");
    insta::assert_snapshot!(context.kiln(&["submit", "--key", "k"]), @r"
    exit 0
    out: bld_[ID]
    err: the key names a build that was submitted before
    ");
    insta::assert_snapshot!(context.kiln(&["list"]), @r"
    exit 0
    out: BUILD  PROJECT  STATE  JOBS  SUBMITTED  TOOK  TITLE
    out: bld_[ID]  default  queued  0/2  [TIME] ago  [TIME]  two
    ");
    insta::assert_snapshot!(context.kiln(&["show"]), @r"
    exit 0
    out: build  bld_[ID]
    out: title  two
    out: project  default
    out: state  queued
    out: submitted  [TIME] [TIME] UTC by admin
    out: took  [TIME]
    out:
    out: JOB  STATE  AGENT  TRY  TOOK  ID  OUTCOME
    out: compile  queued  0  job_[ID]
    out: test  blocked  0  job_[ID]
    ");
    insta::assert_snapshot!(context.kiln(&["explain", "last/compile"]), @r"
    exit 0
    out: job compile queued: no agent is enrolled
    ");
    insta::assert_snapshot!(context.kiln(&["explain", "last"]), @r"
    exit 2
    err: error: last has 2 jobs
    err: hint: name one as last/JOB: compile, test
    ");
    insta::assert_snapshot!(context.kiln(&["logs", "last/compile"]), @r"
    exit 0
    err: job compile has not begun: `kiln explain job_[ID]` says why
    ");
    insta::assert_snapshot!(context.kiln(&["queue"]), @r"
    exit 0
    out: PROJECT  QUEUED  RUNNING  WAITS SINCE
    out: default  1  0  [TIME] ago
    ");
    insta::assert_snapshot!(context.kiln(&["cancel", "last", "--reason", "enough"]), @r"
    exit 0
    out: bld_[ID] cancelled
    ");
    insta::assert_snapshot!(context.kiln(&["watch"]), @r"
    exit 3
    out:  +[TIME]  build submitted, 2 jobs
    out:  +[TIME]  job compile cancelled: cancelled before it started: enough
    out:  +[TIME]  job test cancelled: cancelled before it started: enough
    out:  +[TIME]  build cancelled
    err: job compile cancelled: cancelled before it started
    err: job test cancelled: cancelled before it started
    err: build bld_[ID] cancelled in [TIME]
    ");
    insta::assert_snapshot!(context.kiln(&["retry", "last", "--job", "compile"]), @r"
    exit 0
    out: bld_[ID]: 2 jobs run again
    ");
    insta::assert_snapshot!(context.kiln(&["--output", "json", "list", "--state", "failed"]), @r#"
    exit 0
    out: {
    out:  "builds": [],
    out:  "more": false
    out: }
    "#);
}

#[test]
fn json_words_are_those_of_the_database() {
    let context = Context::with_server();
    context.write("build.toml", BUILD);
    context.out(&["submit"]);
    let shown: serde_json::Value =
        serde_json::from_str(&context.out(&["--output", "json", "show"])).unwrap();
    assert_eq!(shown["build"]["state"], "queued");
    assert_eq!(shown["build"]["counts"]["blocked"], 1);
    assert_eq!(shown["jobs"][0]["state"], "queued");
    assert_eq!(shown["jobs"][1]["needs"][0], "compile");
    assert_eq!(shown["jobs"][1]["outcome"], serde_json::Value::Null);
    assert!(shown["build"]["created_ms"].as_i64().unwrap() > 0);
    assert!(shown["build"]["finished_ms"].is_null());
}

#[test]
fn projects_and_tokens() {
    let context = Context::with_server();
    insta::assert_snapshot!(context.kiln(&["project", "create", "web", "--weight", "300"]), @r"
    exit 0
    out: PROJECT  WEIGHT  RUNNING  LIMIT  PAUSED  CREATED
    out: web  300  0  none  no  [TIME] [TIME] UTC
    ");
    insta::assert_snapshot!(context.kiln(&["project", "pause", "web"]), @r"
    exit 0
    out: PROJECT  WEIGHT  RUNNING  LIMIT  PAUSED  CREATED
    out: web  300  0  none  yes  [TIME] [TIME] UTC
    ");
    insta::assert_snapshot!(context.kiln(&["project", "create", "web"]), @r#"
    exit 2
    err: error: there is a project "web" already; choose another name
    "#);
    let secret = context.out(&["token", "create", "ci", "--role", "reader"]);
    context.write("token", &secret);
    insta::assert_snapshot!(context.kiln(&["--token-file", "token", "project", "resume", "web"]), @r#"
    exit 2
    err: error: the token's role "reader" is not enough
    err: hint: a token of role "admin" may do this
    "#);
    // The last use is told by a sweep, sooner or later.
    let tokens = context.kiln(&["token", "list"]).replace("[TIME] ago", "never");
    insta::assert_snapshot!(tokens, @r"
    exit 0
    out: TOKEN  NAME  ROLE  PROJECT  CREATED  USED  ENDS
    out: tok_[ID]  admin  admin  all  [TIME] [TIME] UTC  never  never
    out: tok_[ID]  ci  reader  all  [TIME] [TIME] UTC  never  [TIME] [TIME] UTC
    ");
    insta::assert_snapshot!(context.kiln(&["agents", "list"]), @r"
    exit 0
    err: no agents
    ");
}

#[test]
fn contexts() {
    let context = Context::new();
    insta::assert_snapshot!(context.kiln(&["config", "set", "office", "--server", "http://h:1", "--token-file", "t"]), @r"
    exit 0
    err: context office is set
    ");
    insta::assert_snapshot!(context.kiln(&["config", "list"]), @r"
    exit 0
    out: CONTEXT  IN USE  SERVER  TOKEN FILE
    out: office  yes  http://h:1  [DIR]/t
    ");
    insta::assert_snapshot!(context.kiln(&["config", "use", "home"]), @r#"
    exit 2
    err: error: there is no context "home"
    err: hint: `kiln config list` shows them, `kiln config set` makes one
    "#);
}

#[test]
fn secrets_are_read_from_files_and_never_shown() {
    let context = Context::with_server();
    context.write("token", "hush");
    insta::assert_snapshot!(context.kiln(&["secret", "set", "TOKEN", "--file", "token"]), @r"
    exit 0
    out: TOKEN of project default is set
    ");
    insta::assert_snapshot!(context.kiln(&["secret", "set", "token", "--file", "token"]), @r"
    exit 2
    err: error: the request can't be used
    err:  name: must be like TOKEN: [A-Z_][A-Z0-9_]*, at most 128 characters
    ");
    let listed = context.out(&["secret", "list", "--output", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let secret = &shown["secrets"][0];
    assert_eq!((&secret["name"], &secret["set_by"]), (&"TOKEN".into(), &"admin".into()));
    assert!(!listed.contains("hush"), "{listed}");
    let run = ["run", "--no-source", "--detach", "--secret"];
    insta::assert_snapshot!(context.kiln(&[&run[..], &["TOKEN=hush", "--", "true"]].concat()), @r"
    exit 2
    err: error: --secret 1: a value can't be an argument: others see it
    err: hint: write NAME for a secret of the project, NAME=@FILE, or NAME=- for standard input; a value is never an argument
    ");
    let missing = context.kiln(&[&run[..], &["GONE", "--", "true"]].concat());
    assert!(
        missing.contains("--secret[0]") && missing.contains("kiln secret set GONE"),
        "{missing}"
    );
    assert!(context.out(&[&run[..], &["ONCE=@token", "--", "true"]].concat()).starts_with("bld_"));
    let anew = context.out(&["secret", "reencrypt"]);
    assert!(anew.starts_with("0 values were encrypted anew"), "{anew}");
    insta::assert_snapshot!(context.kiln(&["secret", "delete", "TOKEN"]), @r"
    exit 0
    out: TOKEN of project default is deleted
    ");
    insta::assert_snapshot!(context.kiln(&["secret", "delete", "TOKEN"]), @r#"
    exit 2
    err: error: secret "TOKEN" does not exist
    "#);
}
