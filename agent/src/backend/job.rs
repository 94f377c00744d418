//! What all backends make of a job's script or command, and of its environment.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use kiln_core::{session::Assignment, spec::JobSpec};

/// Program and arguments; a script is written to `file`, which the job sees as `seen`.
pub(super) fn argv(spec: &JobSpec, file: &Path, seen: &str) -> io::Result<Vec<String>> {
    if !spec.command.is_empty() {
        return Ok(spec.command.clone());
    }
    let mut script =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(file)?;
    script.write_all(spec.script.as_bytes())?;
    // Whatever the umask of the agent is: the user in a container is another one.
    script.set_permissions(std::fs::Permissions::from_mode(0o755))?;
    let words: &[&str] =
        if spec.script.starts_with("#!") { &[seen] } else { &["/bin/sh", "-e", seen] };
    Ok(words.iter().map(|&word| word.to_owned()).collect())
}

/// What every job finds in its environment, its own variables included.
pub(super) fn environment(
    job: &Assignment,
    workspace: &str,
    secrets: Option<&str>,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([("CI".to_owned(), "true".to_owned())]);
    env.extend(job.spec.env.clone());
    let own = [
        ("KILN_PROJECT", job.project.clone()),
        ("KILN_BUILD", job.build.to_string()),
        ("KILN_JOB", job.spec.name.clone()),
        ("KILN_JOB_ID", job.job.to_string()),
        ("KILN_LEASE", job.lease.to_string()),
        ("KILN_ATTEMPT", job.attempt.to_string()),
        ("KILN_WORKSPACE", workspace.to_owned()),
    ];
    env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    // What the job calls goes on with the trace.
    env.extend(job.trace.map(|trace| ("TRACEPARENT".to_owned(), trace.to_string())));
    if let Some(secrets) = secrets {
        env.insert("KILN_SECRETS".to_owned(), secrets.to_owned());
    }
    env
}
