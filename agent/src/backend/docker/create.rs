//! The container of a job, from its spec.

use std::{collections::HashMap, path::Path};

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType};
use kiln_core::{
    id::LeaseId,
    session::Assignment,
    spec::{Container, Network, Resources},
};

/// Where the job finds its files.
pub(super) const WORKSPACE: &str = "/workspace";
pub(super) const KILN: &str = "/kiln";
pub(super) const SECRETS: &str = "/run/secrets";

pub(super) const LEASE_LABEL: &str = "dev.kiln.lease";
pub(super) const AGENT_LABEL: &str = "dev.kiln.agent";

/// Both outputs into the FIFO, in their order; then the job's program takes the shell's place.
const REDIRECT: [&str; 4] = ["/bin/sh", "-c", r#"exec "$@" >/kiln/out 2>&1"#, "kiln"];

/// Folders of the machine that the container sees.
#[derive(Debug)]
pub(super) struct Folders<'a> {
    pub(super) workspace: &'a Path,
    pub(super) kiln: &'a Path,
    pub(super) secrets: Option<&'a Path>,
}

/// What the engine is asked for. `redirect`: the image has a shell that sends the output into the FIFO.
pub(super) fn body(
    job: &Assignment,
    container: &Container,
    owner: &str,
    argv: &[String],
    folders: &Folders<'_>,
    redirect: bool,
) -> ContainerCreateBody {
    let env = super::super::job::environment(job, WORKSPACE, folders.secrets.map(|_| SECRETS));
    let entrypoint: Vec<String> = if redirect {
        REDIRECT.iter().map(|&word| word.to_owned()).collect()
    } else {
        argv.iter().take(1).cloned().collect()
    };
    let cmd = if redirect { argv } else { argv.get(1..).unwrap_or_default() };
    ContainerCreateBody {
        image: Some(super::registry::with_tag(&container.image)),
        entrypoint: Some(entrypoint),
        cmd: Some(cmd.to_vec()),
        env: Some(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()),
        user: (!container.user.is_empty()).then(|| container.user.clone()),
        working_dir: Some(WORKSPACE.to_owned()),
        labels: Some(labels(job.lease, owner)),
        attach_stdin: Some(false),
        tty: Some(false),
        host_config: Some(host_config(&job.spec.resources, container, folders)),
        ..ContainerCreateBody::default()
    }
}

/// By which containers are found after a restart.
pub(super) fn labels(lease: LeaseId, owner: &str) -> HashMap<String, String> {
    [(LEASE_LABEL, lease.to_string()), (AGENT_LABEL, owner.to_owned())]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

fn host_config(resources: &Resources, container: &Container, folders: &Folders<'_>) -> HostConfig {
    let limit = |wanted: i64| (wanted > 0).then_some(wanted);
    let memory = limit(i64::try_from(resources.memory_bytes).unwrap_or(i64::MAX));
    // A job's own tmpfs may hold what it builds and runs.
    let tmpfs = container.tmpfs.iter();
    let tmpfs = tmpfs
        .map(|(path, size)| (path.clone(), format!("rw,exec,nosuid,nodev,mode=1777,size={size}")));
    let mut mounts =
        vec![bind(folders.workspace, WORKSPACE, false), bind(folders.kiln, KILN, true)];
    mounts.extend(folders.secrets.map(|secrets| bind(secrets, SECRETS, true)));
    HostConfig {
        mounts: Some(mounts),
        memory,
        // Swap included: without it a job gets as much again.
        memory_swap: memory,
        nano_cpus: limit(i64::from(resources.cpu_millis) * 1_000_000),
        pids_limit: limit(i64::from(resources.pids)),
        network_mode: Some(
            match container.network {
                Network::Bridge => "default",
                Network::None => "none",
            }
            .to_owned(),
        ),
        readonly_rootfs: Some(container.read_only),
        tmpfs: Some(tmpfs.collect()),
        // Without it the job is process 1, for which signals have other meanings.
        init: Some(true),
        security_opt: (!container.allow_new_privileges)
            .then(|| vec!["no-new-privileges".to_owned()]),
        cap_drop: Some(container.cap_drop.clone()),
        // The log is the spool; the container is there until result and log are acknowledged.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        auto_remove: Some(false),
        ..HostConfig::default()
    }
}

pub(super) fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Mount::default()
    }
}
