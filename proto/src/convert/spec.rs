//! What to build.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{
    outcome::RetryPolicy,
    spec::{
        BuildSpec, ConcurrencyGroup, Constraints, Container, JobSpec, MAX_JOBS, Need, Network,
        PullPolicy, Resources, Source, Timeouts,
    },
};

use super::{Read, Reader, failure_kind, narrow, wide};
use crate::v1;

/// A submission with all defaults filled in; `field` is the path of the message.
pub fn build_spec(field: &str, spec: v1::BuildSpec) -> Read<BuildSpec> {
    let mut reader = Reader::at(field);
    let source = spec.source.and_then(|source| read_source(&mut reader, source));
    if spec.jobs.len() > MAX_JOBS {
        reader.fail("jobs", "at most 10,000 jobs");
        return reader.done(None);
    }
    let mut jobs = Vec::with_capacity(spec.jobs.len());
    for (index, job) in spec.jobs.into_iter().enumerate() {
        let job = job_spec(&reader.name(&format!("jobs[{index}]")), job);
        jobs.extend(reader.take(job));
    }
    let read = BuildSpec {
        title: spec.title,
        source,
        jobs,
        priority: spec.priority,
        annotations: spec.annotations.into_iter().collect(),
    };
    reader.done(Some(read))
}

/// A job with all defaults filled in; `field` is the path of the message.
pub fn job_spec(field: &str, spec: v1::JobSpec) -> Read<JobSpec> {
    let mut reader = Reader::at(field);
    let needs =
        spec.needs.into_iter().map(|need| Need { job: need.job, artifacts: need.artifacts });
    let read = JobSpec {
        name: spec.name,
        needs: needs.collect(),
        backend: spec.backend,
        script: spec.script,
        command: spec.command,
        env: spec.env.into_iter().collect(),
        matrix: spec.matrix.into_iter().map(|(key, values)| (key, values.values)).collect(),
        allow_failure: spec.allow_failure,
        retry: spec.retry.map(|retry| read_retry(&mut reader, &retry)).unwrap_or_default(),
        timeouts: spec.timeouts.map(|times| read_timeouts(&mut reader, times)).unwrap_or_default(),
        constraints: spec
            .constraints
            .map(|constraints| read_constraints(&mut reader, constraints))
            .unwrap_or_default(),
        resources: spec
            .resources
            .map(|resources| read_resources(&mut reader, resources))
            .unwrap_or_default(),
        container: spec.container.map(|container| read_container(&mut reader, container)),
        concurrency: spec.concurrency.map(|group| ConcurrencyGroup {
            name: group.name,
            limit: reader.count("concurrency.limit", group.limit).max(1),
        }),
        priority: spec.priority,
        artifacts: spec.artifacts,
        source: spec.source.and_then(|source| read_source(&mut reader, source)),
        no_source: spec.no_source,
        secrets: spec.secrets,
    };
    reader.done(Some(read))
}

fn read_source(reader: &mut Reader, source: v1::Source) -> Option<Source> {
    match source.kind {
        Some(v1::source::Kind::Git(git)) => {
            Some(Source::Git { url: git.url, r#ref: git.r#ref, submodules: git.submodules })
        }
        Some(v1::source::Kind::Archive(archive)) => Some(Source::Archive {
            sha256: archive.sha256,
            size: reader.unsigned("source.archive.size", archive.size),
        }),
        None => {
            reader.fail("source", "name a git repository or an archive");
            None
        }
    }
}

fn read_retry(reader: &mut Reader, retry: &v1::RetryPolicy) -> RetryPolicy {
    let default = RetryPolicy::default();
    let mut on = BTreeSet::new();
    for (index, &kind) in retry.on.iter().enumerate() {
        let kind = failure_kind(&reader.name(&format!("retry.on[{index}]")), kind);
        on.extend(reader.take(kind));
    }
    RetryPolicy {
        max_attempts: match reader.count("retry.max_attempts", retry.max_attempts) {
            0 => default.max_attempts,
            attempts => attempts,
        },
        on: if on.is_empty() { default.on } else { on },
        backoff_ms: reader.millis("retry.backoff_ms", retry.backoff_ms, default.backoff_ms),
    }
}

fn read_timeouts(reader: &mut Reader, timeouts: v1::Timeouts) -> Timeouts {
    let default = Timeouts::default();
    Timeouts {
        queue_ms: reader.millis("timeouts.queue_ms", timeouts.queue_ms, default.queue_ms),
        total_ms: reader.millis("timeouts.total_ms", timeouts.total_ms, default.total_ms),
        stall_ms: reader.millis("timeouts.stall_ms", timeouts.stall_ms, default.stall_ms),
    }
}

fn read_constraints(reader: &mut Reader, constraints: v1::Constraints) -> Constraints {
    let mut labels = BTreeMap::new();
    for (index, label) in constraints.labels.into_iter().enumerate() {
        if labels.insert(label.key, label.value).is_some() {
            reader.fail(&format!("constraints.labels[{index}].key"), "is named twice");
        }
    }
    Constraints {
        arch: constraints.arch,
        labels,
        min_cpu_millis: reader.count("constraints.min_cpu_millis", constraints.min_cpu_millis),
        min_memory_bytes: reader
            .unsigned("constraints.min_memory_bytes", constraints.min_memory_bytes),
        min_disk_bytes: reader.unsigned("constraints.min_disk_bytes", constraints.min_disk_bytes),
    }
}

fn read_resources(reader: &mut Reader, resources: v1::Resources) -> Resources {
    let default = Resources::default();
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    let log_bytes = reader.unsigned("resources.log_bytes", resources.log_bytes);
    let artifact_bytes = reader.unsigned("resources.artifact_bytes", resources.artifact_bytes);
    Resources {
        cpu_millis: reader.count("resources.cpu_millis", resources.cpu_millis),
        memory_bytes: reader.unsigned("resources.memory_bytes", resources.memory_bytes),
        pids: reader.count("resources.pids", resources.pids),
        log_bytes: or(log_bytes, default.log_bytes),
        artifact_bytes: or(artifact_bytes, default.artifact_bytes),
    }
}

fn read_container(reader: &mut Reader, container: v1::Container) -> Container {
    let pull = match reader.member("container.pull", container.pull) {
        Some(v1::PullPolicy::Always) => PullPolicy::Always,
        Some(v1::PullPolicy::Never) => PullPolicy::Never,
        Some(v1::PullPolicy::Unspecified | v1::PullPolicy::Missing) | None => PullPolicy::Missing,
    };
    let network = match reader.member("container.network", container.network) {
        Some(v1::Network::None) => Network::None,
        Some(v1::Network::Unspecified | v1::Network::Bridge) | None => Network::Bridge,
    };
    let tmpfs = container
        .tmpfs
        .into_iter()
        .map(|(path, size)| {
            let size = reader.unsigned(&format!("container.tmpfs[{path:?}]"), size);
            (path, size)
        })
        .collect();
    Container {
        image: container.image,
        pull,
        network,
        read_only: container.read_only,
        tmpfs,
        user: container.user,
        cap_drop: container.cap_drop,
        allow_new_privileges: container.allow_new_privileges,
    }
}

impl From<BuildSpec> for v1::BuildSpec {
    fn from(spec: BuildSpec) -> Self {
        Self {
            title: spec.title,
            source: spec.source.map(Into::into),
            jobs: spec.jobs.into_iter().map(Into::into).collect(),
            priority: spec.priority,
            annotations: spec.annotations.into_iter().collect(),
        }
    }
}

impl From<JobSpec> for v1::JobSpec {
    fn from(spec: JobSpec) -> Self {
        let matrix = spec.matrix.into_iter();
        let needs = spec.needs.into_iter();
        Self {
            name: spec.name,
            needs: needs.map(|n| v1::Need { job: n.job, artifacts: n.artifacts }).collect(),
            backend: spec.backend,
            script: spec.script,
            command: spec.command,
            env: spec.env.into_iter().collect(),
            matrix: matrix.map(|(key, values)| (key, v1::MatrixValues { values })).collect(),
            allow_failure: spec.allow_failure,
            retry: Some(spec.retry.into()),
            timeouts: Some(spec.timeouts.into()),
            constraints: Some(spec.constraints.into()),
            resources: Some(spec.resources.into()),
            container: spec.container.map(Into::into),
            concurrency: spec
                .concurrency
                .map(|group| v1::ConcurrencyGroup { name: group.name, limit: narrow(group.limit) }),
            priority: spec.priority,
            artifacts: spec.artifacts,
            source: spec.source.map(Into::into),
            no_source: spec.no_source,
            secrets: spec.secrets,
        }
    }
}

impl From<Source> for v1::Source {
    fn from(source: Source) -> Self {
        let kind = match source {
            Source::Git { url, r#ref, submodules } => {
                v1::source::Kind::Git(v1::GitSource { url, r#ref, submodules })
            }
            Source::Archive { sha256, size } => {
                v1::source::Kind::Archive(v1::ArchiveSource { sha256, size: wide(size) })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl From<RetryPolicy> for v1::RetryPolicy {
    fn from(retry: RetryPolicy) -> Self {
        // An empty list is the default list on the wire; one attempt says the same as no kind.
        let attempts = if retry.on.is_empty() { 1 } else { retry.max_attempts };
        Self {
            max_attempts: narrow(attempts),
            on: retry.on.into_iter().map(|kind| v1::FailureKind::from(kind).into()).collect(),
            backoff_ms: retry.backoff_ms,
        }
    }
}

impl From<Timeouts> for v1::Timeouts {
    fn from(timeouts: Timeouts) -> Self {
        let Timeouts { queue_ms, total_ms, stall_ms } = timeouts;
        Self { queue_ms, total_ms, stall_ms }
    }
}

impl From<Constraints> for v1::Constraints {
    fn from(constraints: Constraints) -> Self {
        Self {
            arch: constraints.arch,
            labels: constraints
                .labels
                .into_iter()
                .map(|(key, value)| v1::LabelMatch { key, value })
                .collect(),
            min_cpu_millis: narrow(constraints.min_cpu_millis),
            min_memory_bytes: wide(constraints.min_memory_bytes),
            min_disk_bytes: wide(constraints.min_disk_bytes),
        }
    }
}

impl From<Resources> for v1::Resources {
    fn from(resources: Resources) -> Self {
        Self {
            cpu_millis: narrow(resources.cpu_millis),
            memory_bytes: wide(resources.memory_bytes),
            pids: narrow(resources.pids),
            log_bytes: wide(resources.log_bytes),
            artifact_bytes: wide(resources.artifact_bytes),
        }
    }
}

impl From<Container> for v1::Container {
    fn from(container: Container) -> Self {
        let pull = match container.pull {
            PullPolicy::Missing => v1::PullPolicy::Missing,
            PullPolicy::Always => v1::PullPolicy::Always,
            PullPolicy::Never => v1::PullPolicy::Never,
        };
        let network = match container.network {
            Network::Bridge => v1::Network::Bridge,
            Network::None => v1::Network::None,
        };
        Self {
            image: container.image,
            pull: pull.into(),
            network: network.into(),
            read_only: container.read_only,
            tmpfs: container.tmpfs.into_iter().map(|(path, size)| (path, wide(size))).collect(),
            user: container.user,
            cap_drop: container.cap_drop,
            allow_new_privileges: container.allow_new_privileges,
        }
    }
}
