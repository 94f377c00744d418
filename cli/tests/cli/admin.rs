//! A backup that is made while builds run, and a farm that goes on from it elsewhere.

use serde_json::Value;

use crate::roles::Farm;

#[test]
fn a_farm_goes_on_from_a_backup_that_was_made_while_it_worked() {
    let mut farm = Farm::new();
    let agent = farm.agent();
    let path = |name: &str| farm.folder.path().join(name);
    let keep = ["run", "--no-source", "--artifact", "kept", "--", "sh", "-c"];
    farm.ok(&[&keep[..], &["echo of before; echo bytes > kept"]].concat());
    let done = farm.ok(&["--output", "json", "list"]);
    let done: Value = serde_json::from_str(&done).unwrap();
    let done = done["builds"][0]["id"].as_str().unwrap().to_owned();
    std::fs::write(path("value"), "hunter2-of-a-secret").unwrap();
    farm.ok(&["secret", "set", "TOKEN", "--file", "value"]);
    let go = path("go");
    let script = format!("echo one; until [ -e {} ]; do sleep 0.05; done; echo two", go.display());
    let running = farm.detached(&script);
    farm.until("it runs", |farm| farm.ok(&["logs", &running]).contains("one"));
    let many: Vec<String> = (0..10).map(|n| farm.detached(&format!("echo {n}"))).collect();

    let (code, out, err) = farm.told(&["admin", "backup", "b.kiln"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("b.kiln holds ") && err.contains("without its key"), "{out}{err}");
    assert!(farm.refused(&["admin", "backup", "b.kiln"]).contains("there already"));
    let told = farm.refused(&["admin", "restore", "b.kiln"]);
    assert!(told.contains("is used by another server"), "{told}");
    let unpacked = zstd::decode_all(std::fs::File::open(path("b.kiln")).unwrap()).unwrap();
    let holds = |bytes: &[u8]| unpacked.windows(bytes.len()).any(|window| window == bytes);
    assert!(holds(b"of before\n") && holds(b"manifest.json"));
    for file in ["data/secrets.key", "data/admin.token"] {
        let secret = std::fs::read_to_string(path(file)).unwrap();
        assert!(!holds(secret.trim().as_bytes()), "{file} is in the backup");
    }
    assert!(!holds(b"hunter2-of-a-secret"));

    // The machine of the server is lost; the agent's is not.
    drop(farm.server.take());
    drop(agent);
    let restore = ["admin", "restore", "b.kiln", "--data", "restored"];
    assert!(farm.ok(&restore).starts_with("restored, as of 2"));
    assert!(farm.refused(&restore).contains("is not empty"));
    let serve = ["--listen", "127.0.0.1:0", "--data", "restored"];
    let (code, _, err) = farm.told(&[&["server"], &serve[..]].concat());
    assert!(code == 4 && err.contains("does not have"), "a key is missing: {code} {err}");
    std::fs::copy(path("data/secrets.key"), path("restored/secrets.key")).unwrap();
    let serve: Vec<String> = serve.map(str::to_owned).to_vec();
    farm.serve(&serve.iter().map(String::as_str).collect::<Vec<_>>());

    assert_eq!(farm.ok(&["logs", &done]), "of before\n");
    farm.ok(&["artifacts", "get", &done, "--to", "again/"]);
    let kept = farm.folder.path().join("again/kept");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "bytes\n");
    assert!(farm.ok(&["secret", "list"]).contains("TOKEN"));
    let _agent = farm.start_agent();
    std::fs::write(go, "").unwrap();
    for build in many.iter().chain([&running]) {
        let (code, _, err) = farm.told(&["watch", build]);
        assert_eq!(code, 0, "{err}");
    }
    assert_eq!(farm.ok(&["logs", "-f", &running]), "one\ntwo\n");
    let shown: Value =
        serde_json::from_str(&farm.ok(&["--output", "json", "show", &running])).unwrap();
    assert_eq!(shown["jobs"][0]["attempt"], 1, "it was not begun again");
}
