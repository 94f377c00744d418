//! What this machine offers, and how it fares.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use kiln_core::agent::{Load, Offer, Profile};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;

/// How often backends are asked again.
const PROBE_EVERY: Duration = Duration::from_mins(1);
/// A backend that does not answer within this time is not available.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// Asks the machine and all backends.
pub(crate) async fn probe(
    labels: &BTreeMap<String, String>,
    backends: &[Arc<dyn Backend>],
) -> Profile {
    let uname = rustix::system::uname();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut offers = BTreeMap::new();
    for backend in backends {
        let offer = match timeout(PROBE_LIMIT, backend.probe()).await {
            Ok(Ok(offer)) => offer,
            Ok(Err(why)) => Offer { unavailable: Some(why.to_string()), ..Offer::default() },
            Err(_) => Offer { unavailable: Some("it does not answer".into()), ..Offer::default() },
        };
        offers.insert(backend.kind().to_owned(), offer);
    }
    Profile {
        arch: uname.machine().to_string_lossy().into_owned(),
        os: uname.sysname().to_string_lossy().to_lowercase(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: uname.nodename().to_string_lossy().into_owned(),
        labels: labels.clone(),
        cpu_millis: u32::try_from(cpus.saturating_mul(1_000)).unwrap_or(u32::MAX),
        memory_bytes: meminfo("MemTotal:"),
        backends: offers,
    }
}

/// Probes each minute until told to stop.
pub(crate) async fn keep_probing(
    labels: BTreeMap<String, String>,
    backends: Vec<Arc<dyn Backend>>,
    profile: watch::Sender<Profile>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PROBE_EVERY) => {}
        }
        let now = probe(&labels, &backends).await;
        profile.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

fn meminfo(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1_024)
}

/// How this machine fares now; what can't be found out is zero.
pub(crate) fn load(data: &Path) -> Load {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let minute = text.split(' ').next().and_then(millis).unwrap_or(0);
    let disk =
        rustix::fs::statvfs(data).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    Load {
        load_millis: minute,
        memory_available_bytes: meminfo("MemAvailable:"),
        disk_available_bytes: disk,
    }
}

/// "0.25" in thousandths.
fn millis(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.')?;
    let fraction: String = fraction.chars().chain("000".chars()).take(3).collect();
    Some(whole.parse::<u32>().ok()?.saturating_mul(1_000) + fraction.parse::<u32>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_says_how_it_fares() {
        assert_eq!(millis("1.25"), Some(1_250));
        assert_eq!(millis("x"), None);
        let load = load(Path::new("/"));
        assert!(load.memory_available_bytes > 0 && load.disk_available_bytes > 0, "{load:?}");
    }
}
