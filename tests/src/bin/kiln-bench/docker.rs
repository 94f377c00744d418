//! A container job that does nothing, beside the same container by hand.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bollard::{
    Docker,
    models::{ContainerCreateBody, HostConfig},
    query_parameters::{
        CreateContainerOptions, RemoveContainerOptions, StartContainerOptions, WaitContainerOptions,
    },
};
use futures::{StreamExt, TryStreamExt};
use kiln_sdk::v1::{Container, JobSpec, Network};

use super::{farm::Farm, jobs::millis, report, yardstick::percentile};

const ROUNDS: usize = 20;

pub(crate) async fn container(name: &str, host: &str, image: &str) -> Result<()> {
    let farm = Farm::start("").await?;
    let mut backends = kiln_agent::backend::Config::default();
    host.clone_into(&mut backends.docker.host);
    farm.agent("agent", backends).await?;
    farm.connected(1, 0).await?;
    let socket = host.strip_prefix("unix://").unwrap_or(host);
    let engine = Docker::connect_with_unix(socket, 120, bollard::API_DEFAULT_VERSION)?;
    let (mut jobs, mut hands) = (vec![], vec![]);
    // In turns, so that what else the machine does meets both.
    for round in 0..=ROUNDS {
        let start = Instant::now();
        job(&farm, image).await?;
        let job = start.elapsed();
        let start = Instant::now();
        by_hand(&engine, image).await?;
        if round > 0 {
            jobs.push(job);
            hands.push(start.elapsed());
        }
    }
    let (job, hand): (Duration, Duration) = (percentile(&mut jobs, 50), percentile(&mut hands, 50));
    report::at_most(name, millis(job), "ms", millis(hand), 1.15);
    farm.stop().await
}

/// From Submit until the build says that it succeeded.
async fn job(farm: &Farm, image: &str) -> Result<()> {
    let container =
        Container { image: image.to_owned(), network: Network::None.into(), ..Default::default() };
    let job = JobSpec {
        name: "true".to_owned(),
        backend: "docker".to_owned(),
        command: vec!["true".to_owned()],
        container: Some(container),
        ..Default::default()
    };
    let build = farm.submit(job, 1).await?;
    let events: Vec<_> = farm.client.watch(&build, 0).try_collect().await?;
    let text = format!("{:?}", events.last().context("no event")?);
    ensure!(text.contains("Succeeded"), "the job failed: {text}");
    Ok(())
}

async fn by_hand(engine: &Docker, image: &str) -> Result<()> {
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        cmd: Some(vec!["true".to_owned()]),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let id = engine.create_container(None::<CreateContainerOptions>, body).await?.id;
    let mut ended = engine.wait_container(&id, None::<WaitContainerOptions>);
    engine.start_container(&id, None::<StartContainerOptions>).await?;
    ended.next().await.context("the engine does not say how it ended")??;
    engine.remove_container(&id, None::<RemoveContainerOptions>).await?;
    Ok(())
}
