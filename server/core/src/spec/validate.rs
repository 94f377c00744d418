//! The limits of a submission, field by field.

use std::collections::{BTreeMap, BTreeSet};

use crate::secret;

use super::{BuildSpec, Constraints, Container, JobSpec, Source, Violation};

/// Jobs of one build after the expansion of their matrices: what one transaction can still insert in a second.
pub const MAX_JOBS: usize = 10_000;
const MAX_NAME: usize = 100;
const MAX_TITLE: usize = 200;
const MAX_ANNOTATIONS: usize = 64;
/// A script this long belongs into the source.
const MAX_SCRIPT: usize = 256 * 1024;
const MAX_ENV: usize = 256;
const MAX_TEXT: usize = 32 * 1024;
const MAX_ARTIFACT_GLOBS: usize = 100;
const MAX_MATRIX_VALUES: usize = 100;
const MAX_ATTEMPTS: u32 = 10;
const PRIORITY: std::ops::RangeInclusive<i32> = -100..=100;

/// What is wrong with a submission, apart from its graph.
pub fn validate(spec: &BuildSpec) -> Vec<Violation> {
    let mut found = Findings { path: "spec".into(), violations: vec![] };
    found.check(spec.title.chars().count() <= MAX_TITLE, "title", "at most 200 characters");
    found.check(PRIORITY.contains(&spec.priority), "priority", "must be between -100 and 100");
    found.check(spec.annotations.len() <= MAX_ANNOTATIONS, "annotations", "at most 64 pairs");
    for (key, value) in &spec.annotations {
        found.check(
            (1..=MAX_NAME).contains(&key.len()) && value.len() <= 1_000,
            &format!("annotations[{key:?}]"),
            "keys have 1 to 100 bytes, values at most 1,000",
        );
    }
    if let Some(source) = &spec.source {
        found.source("source", source);
    }
    found.check(!spec.jobs.is_empty(), "jobs", "at least one job is needed");
    found.check(spec.jobs.len() <= MAX_JOBS, "jobs", "at most 10,000 jobs");
    for (index, job) in spec.jobs.iter().enumerate().take(MAX_JOBS) {
        found.at(&format!("spec.jobs[{index}]")).job(job);
    }
    found.violations
}

/// 1 to 100 characters of `[A-Za-z0-9._-]`, not beginning with a dot or a dash.
pub fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn is_variable(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && !text.as_bytes()[0].is_ascii_digit()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_git_url(url: &str) -> bool {
    let scheme =
        ["https://", "http://", "ssh://", "git://"].iter().any(|scheme| url.starts_with(scheme));
    (scheme || url.starts_with('/'))
        && url.len() <= 2_000
        && !url.chars().any(|c| c.is_control() || c == ' ')
}

/// A ref that git can't mistake for an option, and that holds no range or wildcard.
fn is_git_ref(name: &str) -> bool {
    name.len() <= 250
        && !name.starts_with('-')
        && !name.contains("..")
        && !name.chars().any(|c| c.is_control() || " ~^:?*[\\".contains(c))
}

/// Relative, without `..`, so that it stays in the workspace.
fn is_relative_glob(glob: &str) -> bool {
    (1..=1_000).contains(&glob.len())
        && !glob.starts_with('/')
        && !glob.contains('\0')
        && glob.split('/').all(|part| part != "..")
}

struct Findings {
    path: String,
    violations: Vec<Violation>,
}

impl Findings {
    fn at(&mut self, path: &str) -> &mut Self {
        path.clone_into(&mut self.path);
        self
    }

    fn check(&mut self, ok: bool, field: &str, message: &str) {
        if !ok {
            self.violations.push(Violation::new(format!("{}.{field}", self.path), message));
        }
    }

    fn job(&mut self, job: &JobSpec) {
        self.check(is_name(&job.name), "name", "must be 1 to 100 characters of [A-Za-z0-9._-]");
        self.check(
            is_name(&job.backend),
            "backend",
            "name a backend, such as \"docker\" or \"shell\"",
        );
        self.action(job);
        self.environment(&job.env);
        self.matrix(&job.matrix);
        self.limits(job);
        self.constraints(&job.constraints);
        if let Some(container) = &job.container {
            self.container(container);
        }
        if let Some(group) = &job.concurrency {
            self.check(
                (1..=MAX_NAME).contains(&group.name.len()),
                "concurrency.name",
                "must be 1 to 100 bytes",
            );
            self.check(group.limit >= 1, "concurrency.limit", "must be at least 1");
        }
        if let Some(source) = &job.source {
            self.source("source", source);
            self.check(!job.no_source, "no_source", "excludes a source of the job's own");
        }
        self.check(job.artifacts.len() <= MAX_ARTIFACT_GLOBS, "artifacts", "at most 100 globs");
        self.secrets(&job.secrets);
        for (index, glob) in job.artifacts.iter().enumerate() {
            let field = format!("artifacts[{index}]");
            self.check(
                is_relative_glob(glob),
                &field,
                "must be relative to the workspace, without \"..\"",
            );
        }
    }

    fn action(&mut self, job: &JobSpec) {
        let one = job.script.is_empty() != job.command.is_empty();
        self.check(one, "script", "give either a script or a command");
        self.check(
            job.script.len() <= MAX_SCRIPT,
            "script",
            "at most 256 KiB; put longer ones into the source",
        );
        self.check(!job.script.contains('\0'), "script", "must not contain NUL");
        let size: usize = job.command.iter().map(String::len).sum();
        self.check(size <= MAX_SCRIPT, "command", "at most 256 KiB");
        let program = job.command.first().is_none_or(|program| !program.is_empty());
        self.check(
            program && !job.command.iter().any(|arg| arg.contains('\0')),
            "command",
            "must name a program, without NUL",
        );
    }

    fn environment(&mut self, env: &BTreeMap<String, String>) {
        self.check(env.len() <= MAX_ENV, "env", "at most 256 variables");
        for (name, value) in env {
            let field = format!("env[{name:?}]");
            self.check(is_variable(name), &field, "names are [A-Za-z_][A-Za-z0-9_]*");
            self.check(
                !name.starts_with("KILN_"),
                &field,
                "names that start with KILN_ are reserved",
            );
            self.check(
                value.len() <= MAX_TEXT && !value.contains('\0'),
                &field,
                "at most 32 KiB, without NUL",
            );
        }
    }

    fn secrets(&mut self, names: &[String]) {
        self.check(names.len() <= secret::MAX_OF_JOB, "secrets", "at most 32 names");
        for (index, name) in names.iter().enumerate().take(secret::MAX_OF_JOB) {
            let field = format!("secrets[{index}]");
            let message = "names are [A-Z_][A-Z0-9_]*, at most 128 characters";
            self.check(secret::is_secret_name(name), &field, message);
            self.check(!names[..index].contains(name), &field, "is named twice");
        }
    }

    fn matrix(&mut self, matrix: &BTreeMap<String, Vec<String>>) {
        for (key, values) in matrix {
            let field = format!("matrix[{key:?}]");
            self.check(
                is_variable(key) && !key.starts_with("KILN_"),
                &field,
                "keys become variables: [A-Za-z_][A-Za-z0-9_]*",
            );
            self.check(
                (1..=MAX_MATRIX_VALUES).contains(&values.len()),
                &field,
                "must have 1 to 100 values",
            );
            let distinct: BTreeSet<_> = values.iter().collect();
            self.check(distinct.len() == values.len(), &field, "values must differ");
            let short = values.iter().all(|value| value.len() <= MAX_NAME && !value.contains('\0'));
            self.check(short, &field, "values have at most 100 bytes, without NUL");
        }
    }

    fn limits(&mut self, job: &JobSpec) {
        self.check(PRIORITY.contains(&job.priority), "priority", "must be between -100 and 100");
        self.check(
            (1..=MAX_ATTEMPTS).contains(&job.retry.max_attempts),
            "retry.max_attempts",
            "must be between 1 and 10",
        );
        self.check(job.retry.backoff_ms >= 0, "retry.backoff_ms", "must not be negative");
        for (field, value) in [
            ("timeouts.queue_ms", job.timeouts.queue_ms),
            ("timeouts.total_ms", job.timeouts.total_ms),
            ("timeouts.stall_ms", job.timeouts.stall_ms),
        ] {
            self.check(
                (1..=30 * 24 * 3_600_000).contains(&value),
                field,
                "must be between 1 ms and 30 days",
            );
        }
        let memory = job.resources.memory_bytes;
        self.check(
            memory == 0 || memory >= 6 << 20,
            "resources.memory_bytes",
            "must be at least 6 MiB",
        );
    }

    fn constraints(&mut self, constraints: &Constraints) {
        for (key, value) in &constraints.labels {
            let ok = (1..=MAX_NAME).contains(&key.len()) && value.len() <= MAX_NAME;
            self.check(
                ok,
                &format!("constraints.labels[{key:?}]"),
                "keys have 1 to 100 bytes, values at most 100",
            );
        }
    }

    fn container(&mut self, container: &Container) {
        let image = (1..=500).contains(&container.image.len())
            && !container.image.starts_with('-')
            && container.image.bytes().all(|byte| byte.is_ascii_graphic());
        self.check(image, "container.image", "name an image, such as \"debian:bookworm\"");
        for path in container.tmpfs.keys() {
            let ok = path.starts_with('/')
                && path.len() > 1
                && !path.contains([':', ',', '\0'])
                && !path.split('/').any(|part| part == "..");
            self.check(
                ok,
                &format!("container.tmpfs[{path:?}]"),
                "must be an absolute path without ':', ',' or \"..\"",
            );
        }
        let user = container
            .user
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte));
        self.check(user, "container.user", "must be a user or uid[:gid]");
        for (index, capability) in container.cap_drop.iter().enumerate() {
            let ok = !capability.is_empty()
                && capability.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            self.check(
                ok,
                &format!("container.cap_drop[{index}]"),
                "name a capability, such as \"NET_RAW\" or \"ALL\"",
            );
        }
    }

    fn source(&mut self, field: &str, source: &Source) {
        match source {
            Source::Git { url, r#ref, .. } => {
                let message = "must be an https, http, ssh or git URL, or an absolute path";
                self.check(is_git_url(url), &format!("{field}.git.url"), message);
                let message = "must be a branch, a tag or a commit id";
                self.check(is_git_ref(r#ref), &format!("{field}.git.ref"), message);
            }
            Source::Archive { sha256, .. } => {
                let message = "must be 64 lower-case hexadecimal digits";
                self.check(is_sha256(sha256), &format!("{field}.archive.sha256"), message);
            }
        }
    }
}
