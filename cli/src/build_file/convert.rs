//! A build file as a request. Limits and the graph are the server's to check; here is only what the request can't express.

use std::path::PathBuf;

use kiln_sdk::v1::{
    self, ConcurrencyGroup, FailureKind, GitSource, JobSpec, LabelMatch, MatrixValues, RetryPolicy,
    source::Kind,
};

use super::{
    BuildFile,
    schema::{
        Constraints, Container, File, Job, Network, Pull, Resources, Retry, Scalar, Source,
        Timeouts,
    },
};

/// Where it is wrong, and what.
type Wrong = (String, String);

pub(super) fn build(file: File) -> Result<BuildFile, Wrong> {
    let (source, folder) = match file.source {
        Some(source) => split(source).map_err(|message| ("source".to_owned(), message))?,
        None => (None, None),
    };
    let jobs = file.jobs.into_iter().map(job).collect::<Result<_, _>>()?;
    let spec = v1::BuildSpec {
        title: file.title,
        source,
        jobs,
        priority: file.priority,
        annotations: file.annotations.into_iter().collect(),
    };
    Ok(BuildFile { spec, folder })
}

fn split(source: Source) -> Result<(Option<v1::Source>, Option<PathBuf>), String> {
    match (source.git, source.path) {
        (Some(url), None) => {
            let git = GitSource { url, r#ref: source.r#ref, submodules: source.submodules };
            Ok((Some(v1::Source { kind: Some(Kind::Git(git)) }), None))
        }
        (None, Some(path)) if source.r#ref.is_empty() && !source.submodules => {
            Ok((None, Some(path)))
        }
        (None, Some(_)) => Err("ref and submodules go with git, not with path".into()),
        _ => Err("give either git or path".into()),
    }
}

fn job(job: Job) -> Result<JobSpec, Wrong> {
    let name = job.name.clone();
    let wrong = |message: String| (format!("job {name:?}"), message);
    let backend = match (&job.backend, &job.container) {
        (Some(backend), _) => backend.clone(),
        (None, Some(_)) => "docker".into(),
        (None, None) => "shell".into(),
    };
    let source = match job.source.map(split).transpose().map_err(wrong)? {
        None => None,
        Some((source, None)) => source,
        Some((_, Some(_))) => return Err(wrong("a job's own source must be git".into())),
    };
    Ok(JobSpec {
        needs: job
            .needs
            .into_iter()
            .map(|n| v1::Need { job: n.job, artifacts: n.artifacts })
            .collect(),
        backend,
        script: job.script,
        command: job.command,
        env: job.env.into_iter().collect(),
        matrix: job.matrix.into_iter().map(|(key, values)| (key, matrix(values))).collect(),
        allow_failure: job.allow_failure,
        retry: job.retry.as_ref().map(retry).transpose().map_err(wrong)?,
        timeouts: Some(timeouts(&job.timeouts)),
        constraints: Some(constraints(job.constraints)),
        resources: Some(resources(&job.resources)),
        container: job.container.map(container),
        concurrency: job.concurrency.map(|c| ConcurrencyGroup { name: c.name, limit: c.limit }),
        priority: job.priority,
        artifacts: job.artifacts,
        source,
        no_source: job.no_source,
        secrets: job.secrets,
        name: job.name,
    })
}

fn matrix(values: Vec<Scalar>) -> MatrixValues {
    let text = |value| match value {
        Scalar::Text(text) => text,
        Scalar::Whole(number) => number.to_string(),
        Scalar::Truth(truth) => truth.to_string(),
    };
    MatrixValues { values: values.into_iter().map(text).collect() }
}

fn retry(retry: &Retry) -> Result<RetryPolicy, String> {
    let kind = |word: &String| {
        let name = format!("FAILURE_KIND_{}", word.to_ascii_uppercase());
        let kind =
            FailureKind::from_str_name(&name).filter(|kind| *kind != FailureKind::Unspecified);
        let kinds = "user, infra, timeout, stalled, oom, lost or dependency";
        kind.map(i32::from).ok_or_else(|| format!("retry.on: {word:?} is not one of {kinds}"))
    };
    Ok(RetryPolicy {
        max_attempts: retry.max_attempts,
        on: retry.on.iter().map(kind).collect::<Result<_, _>>()?,
        backoff_ms: retry.backoff.0,
    })
}

const fn timeouts(timeouts: &Timeouts) -> v1::Timeouts {
    v1::Timeouts {
        queue_ms: timeouts.queue.0,
        total_ms: timeouts.total.0,
        stall_ms: timeouts.stall.0,
    }
}

fn constraints(constraints: Constraints) -> v1::Constraints {
    let labels = constraints.labels.into_iter();
    v1::Constraints {
        arch: constraints.arch,
        labels: labels.map(|(key, value)| LabelMatch { key, value }).collect(),
        min_cpu_millis: constraints.min_cpus.0,
        min_memory_bytes: constraints.min_memory.0,
        min_disk_bytes: constraints.min_disk.0,
    }
}

const fn resources(resources: &Resources) -> v1::Resources {
    v1::Resources {
        cpu_millis: resources.cpus.0,
        memory_bytes: resources.memory.0,
        pids: resources.pids,
        log_bytes: resources.log.0,
        artifact_bytes: resources.artifacts.0,
    }
}

fn container(container: Container) -> v1::Container {
    let pull = match container.pull {
        Pull::Missing => v1::PullPolicy::Missing,
        Pull::Always => v1::PullPolicy::Always,
        Pull::Never => v1::PullPolicy::Never,
    };
    let network = match container.network {
        Network::Bridge => v1::Network::Bridge,
        Network::None => v1::Network::None,
    };
    v1::Container {
        image: container.image,
        pull: pull.into(),
        network: network.into(),
        read_only: container.read_only,
        tmpfs: container.tmpfs.into_iter().map(|(path, size)| (path, size.0)).collect(),
        user: container.user,
        cap_drop: container.cap_drop,
        allow_new_privileges: container.allow_new_privileges,
    }
}
