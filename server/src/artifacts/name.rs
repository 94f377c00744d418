//! What an artifact may be called: a relative path that stays below the folder it is placed in.

use kiln_core::{session::Artifact, spec::Violation};

use super::Digest;

const MAX_NAME: usize = 1_000;
/// Artifacts of one report.
const MAX_ARTIFACTS: usize = 10_000;

/// What is wrong with a name, if anything.
fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("is empty"),
        name if name.len() > MAX_NAME => Err("is longer than 1,000 bytes"),
        name if name.contains('\0') => Err("contains a NUL byte"),
        name if name.starts_with('/') => Err("is absolute; it must be relative to the workspace"),
        name if name.split('/').any(|part| matches!(part, "" | "." | "..")) => {
            Err("contains an empty part, '.' or '..'")
        }
        _ => Ok(()),
    }
}

/// What is wrong with the artifacts of a report by themselves.
pub(super) fn check(artifacts: &[Artifact]) -> Vec<Violation> {
    if artifacts.len() > MAX_ARTIFACTS {
        return vec![Violation::new("artifacts", format!("has more than {MAX_ARTIFACTS}"))];
    }
    let mut violations = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    for (index, artifact) in artifacts.iter().enumerate() {
        let mut add = |field: &str, message: &str| {
            violations.push(Violation::new(format!("artifacts[{index}].{field}"), message));
        };
        if let Err(message) = check_name(&artifact.name) {
            add("name", message);
        }
        if !names.insert(&artifact.name) {
            add("name", "is used twice");
        }
        if Digest::parse(&artifact.sha256).is_none() {
            add("sha256", "needs 64 lower-case hexadecimal digits");
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_their_folder() {
        for good in ["a", "out/app-1.0.tar.gz", "..a/b..", "a b/ä", ".config"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        let long = "a/".repeat(500) + "a";
        for bad in ["", "/etc/passwd", "..", "a/../b", "a//b", "a/", "./a", "a\0b", &long] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_violation_names_its_field() {
        let artifact = |name: &str, sha256: &str| Artifact {
            name: name.to_owned(),
            size: 1,
            sha256: sha256.to_owned(),
            mode: 0o644,
        };
        let digest = "0".repeat(64);
        let violations =
            check(&[artifact("a", &digest), artifact("../a", &digest), artifact("a", "F00")]);
        let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["artifacts[1].name", "artifacts[2].name", "artifacts[2].sha256"]);
    }
}
