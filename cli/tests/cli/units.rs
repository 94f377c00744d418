//! The units for systemd: it takes them, and what they start takes its arguments.

use std::{fs, path::Path, process::Command};

const UNITS: [(&str, &str); 2] = [("kiln-server", "server"), ("kiln-agent", "agent")];

fn unit(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
    fs::read_to_string(folder.join(format!("{name}.service"))).unwrap()
}

fn setting<'a>(unit: &'a str, key: &str) -> &'a str {
    let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key}"))
}

#[test]
fn systemd_takes_the_units() {
    let there = Command::new("systemd-analyze").arg("--version").output();
    if there.is_err() {
        let required = std::env::var("KILN_TEST_REQUIRE").is_ok_and(|value| value == "1");
        assert!(!required, "systemd-analyze is not there, but KILN_TEST_REQUIRE=1");
        println!("skipped: systemd-analyze is not there");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, _) in UNITS {
        let path = folder.path().join(format!("{name}.service"));
        let text =
            unit(name).replace("/usr/bin/kiln ", &format!("{} ", env!("CARGO_BIN_EXE_kiln")));
        fs::write(&path, text).unwrap();
        let mut command = Command::new("systemd-analyze");
        let output = command.args(["verify", "--man=no"]).arg(&path).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let wrong: Vec<_> = said
            .lines()
            // It is of systemd 254; older ones leave it out.
            .filter(|line| line.contains(name) && !line.contains("DelegateSubgroup"))
            .collect();
        assert!(output.status.success() && wrong.is_empty(), "{said}");
    }
}

#[test]
fn what_the_units_start_takes_their_files_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    for (name, role) in UNITS {
        let text = unit(name);
        let file = folder.path().join(format!("{role}.toml"));
        fs::write(&file, "").unwrap();
        let start = setting(&text, "ExecStart").strip_prefix("/usr/bin/kiln ").unwrap();
        let start = start.replace(&format!("/etc/kiln/{role}.toml"), file.to_str().unwrap());
        let (variable, data) = setting(&text, "Environment").split_once('=').unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(start.split(' ')).arg("--check-config").env_clear().env(variable, data);
        let output = command.output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(shown.contains(&format!("data = \"{data}\" # {variable}\n")), "{shown}");
        assert_eq!(data, format!("/var/lib/{}", setting(&text, "StateDirectory")));
        assert!(setting(&text, "RestartPreventExitStatus").starts_with('2'));
    }
    assert_eq!(setting(&unit("kiln-agent"), "KillMode"), "process", "jobs outlive their agent");
}
