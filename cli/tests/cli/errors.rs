//! What goes wrong is said with the field and what to do; exit codes are as documented.

use super::Context;

#[test]
fn no_server() {
    insta::assert_snapshot!(Context::new().kiln(&["list"]), @r"
    exit 4
    err: error: cannot reach http://127.0.0.1:1: Connection refused (os error 111)
    err: hint: start a server with `kiln up`, or name one with --server, KILN_SERVER or `kiln config set`
    ");
}

#[test]
fn wrong_usage() {
    let context = Context::new();
    insta::assert_snapshot!(context.kiln(&["run", "--memory", "lots", "--", "true"]), @r#"
    exit 2
    err: error: invalid value 'lots' for '--memory <SIZE>': "lots" is not a size; write it like "512MiB" or "2GiB"
    err:
    err: For more information, try '--help'.
    "#);
    insta::assert_snapshot!(context.kiln(&["--server", "localhost", "list"]), @r#"
    exit 2
    err: error: bad server address "localhost"
    err: hint: write it as http://host:port or https://host:port
    "#);
    insta::assert_snapshot!(context.kiln(&["--context", "office", "list"]), @r#"
    exit 2
    err: error: there is no context "office"
    err: hint: `kiln config list` shows them, `kiln config set` makes one
    "#);
    insta::assert_snapshot!(context.kiln(&["--token-file", "nowhere", "list"]), @r"
    exit 2
    err: error: cannot read nowhere: No such file or directory (os error 2)
    ");
}

#[test]
fn a_wrong_build_file() {
    let context = Context::new();
    context.write("build.toml", "version = 1\n[[jobs]]\nname = \"a\"\nscirpt = \"true\"\n");
    insta::assert_snapshot!(context.kiln(&["submit", "--check"]), @r"
    exit 2
    err: error: build.toml:4:1: unknown field `scirpt`
    err: hint: expected one of `name`, `needs`, `backend`, `script`, `command`, `env`, `matrix`, `allow_failure`, `priority`, `artifacts`, `retry`, `timeouts`, `constraints`, `resources`, `container`, `concurrency`, `source`, `no_source`, `secrets`
    ");
    insta::assert_snapshot!(context.kiln(&["submit", "-f", "none.toml"]), @r"
    exit 2
    err: error: cannot read none.toml: No such file or directory (os error 2)
    err: hint: name another file with -f, or - for standard input
    ");
}

#[test]
fn what_the_server_refuses_is_told_by_the_name_of_the_job() {
    let context = Context::with_server();
    let text = "version = 1\n[[jobs]]\nname = \"a\"\nneeds = [\"b\"]\nscript = \"x\"\nartifacts = [\"../x\"]\n";
    context.write("build.toml", text);
    insta::assert_snapshot!(context.kiln(&["submit"]), @r#"
    exit 2
    err: error: the request can't be used
    err:  job "a": artifacts[0]: must be relative to the workspace, without ".."
    "#);
    insta::assert_snapshot!(context.kiln(&["list"]), @r"
    exit 0
    err: no builds
    ");
}

#[test]
fn what_the_server_refuses_of_a_run_is_told_by_the_flag() {
    let context = Context::with_server();
    let run = [
        "run",
        "--no-source",
        "--memory",
        "1MiB",
        "--env",
        "KILN_X=1",
        "--artifact",
        "/x",
        "--",
        "x",
    ];
    insta::assert_snapshot!(context.kiln(&run), @r#"
    exit 2
    err: error: the request can't be used
    err:  --env["KILN_X"]: names that start with KILN_ are reserved
    err:  --memory: must be at least 6 MiB
    err:  --artifact[0]: must be relative to the workspace, without ".."
    "#);
    let told = context.kiln(&["run", "--timeout", "0s", "--", "x"]);
    assert!(told.contains("is nothing; leave it out for the default"), "{told}");
    let told = context.kiln(&["config", "set", "office", "--server", "kiln.example"]);
    assert!(told.starts_with("exit 2\nerr: error: bad server address"), "{told}");
}

#[test]
fn a_wrong_token() {
    let context = Context::with_server();
    context.write("token", "kiln_00\n");
    insta::assert_snapshot!(context.kiln(&["--token-file", "token", "list"]), @r"
    exit 2
    err: error: the token is not valid; make a new one with `kiln token create`
    err: hint: send `authorization: Bearer TOKEN`; an administrator makes tokens with `kiln token create`
    ");
}

#[test]
fn names_that_name_nothing() {
    let context = Context::with_server();
    insta::assert_snapshot!(context.kiln(&["show", "last"]), @r"
    exit 2
    err: error: there is no build yet
    ");
    insta::assert_snapshot!(context.kiln(&["show", "x"]), @r#"
    exit 2
    err: error: "x" names no build
    err: hint: give an id as `kiln list` shows it, its beginning, or "last"
    "#);
    insta::assert_snapshot!(context.kiln(&["show", "bld_01234567"]), @r"
    exit 2
    err: error: no build's id begins with bld_01234567
    err: hint: `kiln list` shows the ids
    ");
    insta::assert_snapshot!(context.kiln(&["project", "show", "none"]), @r#"
    exit 2
    err: error: project "none" does not exist
    err: hint: `kiln project list` shows them, `kiln project create` makes one
    "#);
}
