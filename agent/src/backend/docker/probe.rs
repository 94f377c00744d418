//! What an engine offers, as it says of itself.

use bollard::{Docker, models::SystemInfo};
use kiln_core::agent::Offer;

use super::Config;
use crate::backend::Unavailable;

/// The oldest interface that has all that is used here.
const OLDEST_API: (u32, u32) = (1, 41);

pub(super) async fn probe(docker: &Docker, config: &Config) -> Result<Offer, Unavailable> {
    let host = config.engine();
    let failed = |error: bollard::errors::Error| {
        Unavailable(format!("no container engine answers at {}: {error}", host.host()))
    };
    let version = docker.version().await.map_err(failed)?;
    let api = version.api_version.unwrap_or_default();
    if parse(&api).is_none_or(|api| api < OLDEST_API) {
        let (major, minor) = OLDEST_API;
        return Err(Unavailable(format!(
            "the engine at {} speaks API {api}, {major}.{minor} is needed",
            host.host()
        )));
    }
    let info = docker.info().await.map_err(failed)?;
    if info.os_type.as_deref().is_some_and(|os| os != "linux") {
        return Err(Unavailable("the engine does not run Linux containers".to_owned()));
    }
    Ok(Offer {
        slots: config.slots,
        features: features(&info).map(str::to_owned).collect(),
        operations: ["script".to_owned()].into(),
        facts: facts(&info, &api),
        unavailable: None,
    })
}

fn parse(api: &str) -> Option<(u32, u32)> {
    let (major, minor) = api.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn features(info: &SystemInfo) -> impl Iterator<Item = &'static str> {
    let cpu = info.cpu_cfs_period == Some(true) && info.cpu_cfs_quota == Some(true);
    let limits = [
        (cpu, "cpu-limit"),
        (info.memory_limit == Some(true), "memory-limit"),
        (info.pids_limit == Some(true), "pids-limit"),
    ];
    let always = ["container", "network-none", "read-only", "tmpfs", "user", "cap-drop"];
    let limits = limits.into_iter().filter(|(enforced, _)| *enforced).map(|(_, feature)| feature);
    always.into_iter().chain(limits)
}

fn facts(info: &SystemInfo, api: &str) -> std::collections::BTreeMap<String, String> {
    let word = |value: Option<String>| value.unwrap_or_default();
    let driver = info.cgroup_driver.map(|driver| driver.to_string());
    let version = info.cgroup_version.map(|version| version.to_string());
    [
        ("version", word(info.server_version.clone())),
        ("api", api.to_owned()),
        ("storage", word(info.driver.clone())),
        ("cgroup", format!("v{} by {}", word(version), word(driver))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
