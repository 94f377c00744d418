//! The page that Prometheus reads: what was counted, and what the rows say at the moment.

use std::fmt::{self, Write};

use kiln_core::Millis;
use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{Label, Metrics};
use crate::store::{Census, Wait};

type Gauges = Family<Label, Gauge>;

/// What is known only when it is asked.
#[derive(Debug)]
pub struct Now<'a> {
    pub at: Millis,
    /// None where the database can't be asked: then nothing is said of rows.
    pub census: Option<&'a Census>,
    /// Sessions of this process.
    pub sessions: usize,
}

impl Metrics {
    /// The content type of [`Metrics::page`].
    pub const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// All numbers as OpenMetrics text.
    pub fn page(&self, now: &Now<'_>) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = self.write(now, &mut text);
        text
    }

    fn write(&self, now: &Now<'_>, text: &mut impl Write) -> fmt::Result {
        encode_registry(text, &self.0.registry)?;
        encode_registry(text, &process(now))?;
        if let Some(census) = now.census {
            encode_registry(text, &rows(census, now.at))?;
        }
        encode_eof(text)
    }
}

fn wide(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn gauge(value: impl TryInto<i64>) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(wide(value));
    gauge
}

fn process(now: &Now<'_>) -> Registry {
    let mut registry = Registry::with_prefix("kiln");
    let version = Gauges::default();
    version.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
    registry.register("build_info", "1, with the version of this server", version);
    let help = "Whether the database answered when this page was made";
    registry.register("database_up", help, gauge(u8::from(now.census.is_some())));
    let help = "Sessions of agents with this server";
    registry.register("replica_sessions", help, gauge(now.sessions));
    registry
}

/// The same on all servers of a database.
fn rows(census: &Census, at: Millis) -> Registry {
    let (jobs, age, leases) = (Gauges::default(), Gauges::default(), Gauges::default());
    for wait in Wait::ALL {
        let label = [("wait", wait.as_str())];
        let found = || census.queue.iter().filter(|depth| depth.wait == wait);
        jobs.get_or_create(&label).set(wide(found().map(|depth| depth.jobs).sum::<u64>()));
        let oldest = found().map(|depth| depth.oldest).min().unwrap_or(at);
        age.get_or_create(&label).set(at.saturating_sub(oldest).max(0) / 1_000);
    }
    leases.get_or_create(&[("phase", "leased")]).set(wide(census.leased));
    leases.get_or_create(&[("phase", "running")]).set(wide(census.running));
    let mut registry = Registry::with_prefix("kiln");
    registry.register("queue_jobs", "Queued jobs, by what they wait for", jobs);
    let help = "Age of the oldest queued job, by what it waits for; 0 where none waits";
    registry.register_with_unit("queue_oldest", help, Unit::Seconds, age);
    registry.register("leases", "Open leases, by phase", leases);
    registry.register("sessions", "Open sessions of agents", gauge(census.sessions));
    registry
}

#[cfg(test)]
mod tests {
    use kiln_core::id::ProjectId;

    use super::*;
    use crate::store::Depth;

    /// Names of the metrics of a page, with their types.
    fn named(page: &str) -> Vec<(String, String)> {
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types
            .map(|line| {
                let (name, kind) = line.split_once(' ').unwrap();
                let suffix = if kind == "counter" { "_total" } else { "" };
                (format!("{name}{suffix}"), kind.to_owned())
            })
            .collect()
    }

    fn census() -> Census {
        let project = ProjectId::from_uuid(uuid::Uuid::nil());
        let depth = |wait, jobs, oldest| Depth { project, wait, jobs, oldest };
        let queue = vec![
            depth(Wait::Slot, 3, 4_000),
            depth(Wait::Slot, 2, 1_500),
            depth(Wait::Group, 1, 9_000),
        ];
        Census { queue, leased: 1, running: 2, sessions: 7 }
    }

    #[test]
    fn rows_are_summed_by_what_they_wait_for() {
        let census = census();
        let now = Now { at: 10_000, census: Some(&census), sessions: 4 };
        let page = Metrics::default().page(&now);
        for line in [
            r#"kiln_queue_jobs{wait="slot"} 5"#,
            r#"kiln_queue_jobs{wait="project"} 0"#,
            r#"kiln_queue_oldest_seconds{wait="slot"} 8"#,
            r#"kiln_queue_oldest_seconds{wait="group"} 1"#,
            r#"kiln_queue_oldest_seconds{wait="backoff"} 0"#,
            r#"kiln_leases{phase="running"} 2"#,
            "kiln_sessions 7",
            "kiln_replica_sessions 4",
            "kiln_database_up 1",
            r#"kiln_refused_calls_total{reason="limit"} 0"#,
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing:\n{page}");
        }
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn nothing_is_said_of_rows_that_cannot_be_read() {
        let page = Metrics::default().page(&Now { at: 0, census: None, sessions: 0 });
        assert!(page.contains("kiln_database_up 0") && !page.contains("kiln_queue_jobs"));
    }

    fn page() -> String {
        Metrics::default().page(&Now { at: 0, census: Some(&census()), sessions: 0 })
    }

    fn documentation(file: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/");
        std::fs::read_to_string(format!("{folder}{file}")).unwrap()
    }

    #[test]
    fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
        let known = named(&page());
        for file in ["monitoring/rules.yaml", "monitoring/dashboard.json"] {
            let text = documentation(file);
            let is_other = |c: char| !c.is_ascii_alphanumeric() && c != '_';
            let asked: Vec<&str> =
                text.split(is_other).filter(|word| word.starts_with("kiln_")).collect();
            assert!(asked.len() > 5, "{file}");
            for word in asked {
                let of = |suffix| word.strip_suffix(suffix).unwrap_or(word);
                let found = known.iter().any(|(name, kind)| match kind.as_str() {
                    "histogram" => ["_bucket", "_sum", "_count"].map(of).contains(&name.as_str()),
                    _ => name == word,
                });
                assert!(found, "{file} asks for {word}");
            }
        }
    }

    #[test]
    fn the_documented_metrics_are_those_of_the_page() {
        let text = documentation("monitoring.md");
        let lines = text.lines().filter_map(|line| line.strip_prefix("| `kiln_"));
        let mut documented: Vec<(String, String)> = lines
            .map(|line| {
                let mut cells = line.split('|').map(str::trim);
                let name = cells.next().unwrap().trim_end_matches('`');
                (format!("kiln_{name}"), cells.next().unwrap().to_owned())
            })
            .collect();
        documented.sort();
        let mut found = named(&page());
        found.sort();
        assert_eq!(documented, found, "docs/monitoring.md must list what is on the right");
    }
}
