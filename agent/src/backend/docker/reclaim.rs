//! Files that a container's root left in the workspace, given back to an agent that is not root and could not remove them.

use std::{path::Path, time::Duration};

use bollard::{
    Docker,
    errors::Error,
    models::{ContainerCreateBody, HostConfig},
    query_parameters::{
        CreateContainerOptions, RemoveContainerOptions, StartContainerOptions, WaitContainerOptions,
    },
};
use futures::StreamExt;
use tokio::time::timeout;

use super::create;

const LIMIT: Duration = Duration::from_mins(2);

/// Only the engine can do it: one more container of the job's own image, as root, with nothing but the workspace.
pub(super) async fn reclaim(
    docker: &Docker,
    image: &str,
    labels: std::collections::HashMap<String, String>,
    workspace: &Path,
) {
    if rustix::process::geteuid().is_root() {
        return;
    }
    match timeout(LIMIT, chown(docker, image, labels, workspace)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "files of a container's root stay its own"),
        Err(_) => tracing::warn!("files of a container's root stay its own: no answer in time"),
    }
}

async fn chown(
    docker: &Docker,
    image: &str,
    labels: std::collections::HashMap<String, String>,
    workspace: &Path,
) -> Result<(), Error> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let owner = format!("{}:{}", uid.as_raw(), gid.as_raw());
    let words = ["/bin/sh", "-c", "chown -hR \"$0\" /workspace", &owner];
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        entrypoint: Some(words.iter().map(|&word| word.to_owned()).collect()),
        cmd: Some(vec![]),
        user: Some("0:0".to_owned()),
        labels: Some(labels),
        host_config: Some(HostConfig {
            mounts: Some(vec![create::bind(workspace, create::WORKSPACE, false)]),
            network_mode: Some("none".to_owned()),
            readonly_rootfs: Some(true),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let made = docker.create_container(None::<CreateContainerOptions>, body).await?;
    let started = docker.start_container(&made.id, None::<StartContainerOptions>).await;
    if started.is_ok() {
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        let _best_effort = docker.wait_container(&made.id, Some(options)).next().await;
    }
    let options = RemoveContainerOptions { force: true, ..RemoveContainerOptions::default() };
    docker.remove_container(&made.id, Some(options)).await?;
    started
}
