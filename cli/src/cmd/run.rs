//! `kiln run`: one command as a build, with the current folder as its source.

use std::path::PathBuf;

use futures::TryStreamExt;
use kiln_sdk::{
    Client, LogRequest,
    v1::{
        self, ArchiveSource, BuildSpec, CancelBuildRequest, Container, GitSource, JobSpec,
        SubmitBuildRequest, source::Kind,
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Duration,
};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    failure::Failure,
    follow, json, pack, secrets, time, units,
};

/// The end of a log that comes after the end of its build is waited for this long.
const LOG_END: Duration = Duration::from_secs(15);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Image to run in; chooses the docker backend
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Backend to run on [default: docker with an image, else shell]
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Check out a repository instead of packing the current folder
    #[arg(long, value_name = "URL[@REF]", conflicts_with_all = ["no_source", "path"])]
    git: Option<String>,
    /// Start with an empty workspace
    #[arg(long, conflicts_with = "path")]
    no_source: bool,
    /// Folder to pack, by git's ignore rules
    #[arg(long, value_name = "DIR", default_value = ".", hide_default_value = true)]
    path: PathBuf,
    /// Variable of the command; repeat for more
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Secret of the command, a file in $KILN_SECRETS: NAME is the project's, NAME=@FILE and NAME=- (standard input) are
    /// for this build alone; repeat for more
    #[arg(long, value_name = "NAME[=@FILE|-]")]
    secret: Vec<String>,
    /// Files to keep; repeat for more
    #[arg(long, value_name = "GLOB")]
    artifact: Vec<String>,
    /// Memory it may use, as 512MiB
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    memory: Option<i64>,
    /// Processors it may use, as 1.5
    #[arg(long, value_name = "N", value_parser = units::cpus)]
    cpus: Option<i32>,
    /// How long it may run, as 10m
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    timeout: Option<i64>,
    /// Label the agent must have; repeat for more
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = label)]
    label: Vec<(String, String)>,
    /// Project of the build
    #[arg(long, value_name = "NAME", default_value = "default")]
    project: String,
    /// Title of the build [default: the command]
    #[arg(long)]
    title: Option<String>,
    /// Submit, print the id, and do not wait
    #[arg(long)]
    detach: bool,
    /// Program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Which flag a field of the request comes from.
const FLAGS: &[(&str, &str)] = &[
    ("spec.title", "--title"),
    ("spec.source.git.url", "--git"),
    ("spec.source.git.ref", "--git …@REF"),
    ("spec.jobs[0].backend", "--backend"),
    ("spec.jobs[0].command", "COMMAND"),
    ("spec.jobs[0].env", "--env"),
    ("spec.jobs[0].artifacts", "--artifact"),
    ("spec.jobs[0].secrets", "--secret"),
    ("secrets", "--secret"),
    ("spec.jobs[0].timeouts.total_ms", "--timeout"),
    ("spec.jobs[0].constraints.labels", "--label"),
    ("spec.jobs[0].resources.memory_bytes", "--memory"),
    ("spec.jobs[0].resources.cpu_millis", "--cpus"),
    ("spec.jobs[0].container.image", "--image"),
];

/// What the server refused, by the names that were typed.
fn in_flags(error: kiln_sdk::Error) -> Failure {
    let mut failure = Failure::from(error);
    for (field, _) in &mut failure.fields {
        let found = FLAGS.iter().find_map(|(name, flag)| Some((field.strip_prefix(name)?, flag)));
        if let Some((rest, flag)) = found {
            *field = format!("{flag}{rest}");
        }
    }
    failure
}

fn pair(text: &str) -> std::result::Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

#[expect(clippy::unnecessary_wraps, reason = "clap's shape of a parser")]
fn label(text: &str) -> std::result::Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    Ok((key.to_owned(), value.to_owned()))
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let secrets = secrets::read(&self.secret, true)?;
        let client = cx.client().await?;
        let source = self.source(cx, &client).await?;
        let detach = self.detach;
        let request = SubmitBuildRequest {
            project: self.project.clone(),
            spec: Some(self.spec(source, secrets.names)),
            secrets: secrets.given,
            ..Default::default()
        };
        let build = client.submit(request).await.map_err(in_flags)?.build;
        let build = build.ok_or_else(|| Failure::internal("the server sent no build"))?;
        if detach {
            if cx.printer.is_json() {
                cx.printer.json(&json::build(&build))?;
            } else {
                cx.printer.line(&build.id)?;
            }
            return Ok(ExitStatus::Succeeded);
        }
        cx.printer.note(format!("build {} submitted", build.id));
        follow(cx, &client, &build.id).await
    }

    async fn source(&self, cx: &Cx<'_>, client: &Client) -> Result<Option<v1::Source>> {
        if self.no_source {
            return Ok(None);
        }
        if let Some(git) = &self.git {
            return Ok(Some(v1::Source { kind: Some(Kind::Git(git_source(git))) }));
        }
        upload(cx, client, self.path.clone()).await.map(Some)
    }

    fn spec(self, source: Option<v1::Source>, secrets: Vec<String>) -> BuildSpec {
        let backend = self
            .backend
            .unwrap_or_else(|| if self.image.is_some() { "docker".into() } else { "shell".into() });
        let labels = self.label.into_iter().map(|(key, value)| v1::LabelMatch { key, value });
        let title: String = self.title.unwrap_or_else(|| self.command.join(" "));
        let job = JobSpec {
            name: "run".into(),
            backend,
            command: self.command,
            env: self.env.into_iter().collect(),
            artifacts: self.artifact,
            secrets,
            timeouts: Some(v1::Timeouts {
                total_ms: self.timeout.unwrap_or(0),
                ..Default::default()
            }),
            constraints: Some(v1::Constraints { labels: labels.collect(), ..Default::default() }),
            resources: Some(v1::Resources {
                cpu_millis: self.cpus.unwrap_or(0),
                memory_bytes: self.memory.unwrap_or(0),
                ..Default::default()
            }),
            container: self.image.map(|image| Container { image, ..Default::default() }),
            ..Default::default()
        };
        BuildSpec {
            title: title.chars().take(200).collect(),
            source,
            jobs: vec![job],
            ..Default::default()
        }
    }
}

/// `@REF` begins behind the last `/`: an `@` before it belongs to the address.
fn git_source(text: &str) -> GitSource {
    let tail = text.rfind('/').map_or(0, |slash| slash + 1);
    // A ref may hold slashes itself: the first `@` behind the host decides.
    let host = text.find("://").map_or(0, |scheme| scheme + 3);
    let path = text[host..].find('/').map_or(tail, |slash| host + slash);
    let (url, name) = match text[path..].find('@') {
        Some(at) => (&text[..path + at], &text[path + at + 1..]),
        None => (text, ""),
    };
    GitSource { url: url.into(), r#ref: name.into(), submodules: false }
}

/// Packs a folder and uploads it by digest.
pub(crate) async fn upload(cx: &Cx<'_>, client: &Client, folder: PathBuf) -> Result<v1::Source> {
    let packing = tokio::task::spawn_blocking(move || pack::pack(&folder));
    let packed =
        packing.await.map_err(|e| Failure::internal(format!("packing stopped: {e}")))??;
    let uploaded = client.upload(&packed.path).await?;
    let size = i64::try_from(uploaded.size).unwrap_or(i64::MAX);
    let held = if uploaded.sent == 0 { ", held by the server already" } else { "" };
    let (files, shown) = (packed.files, units::show_size(size));
    cx.printer.note(format!("source {files} files, {shown}{held}"));
    let archive = ArchiveSource { sha256: uploaded.sha256, size };
    Ok(v1::Source { kind: Some(Kind::Archive(archive)) })
}

/// The log live, until the build is done. The first Ctrl-C cancels, the second leaves.
async fn follow(cx: &Cx<'_>, client: &Client, build: &str) -> Result {
    let mut follow = Box::pin(show(cx, client, build));
    // One listener for both, so that no press falls in between.
    let mut interrupts = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = &mut follow => return result,
        _ = interrupts.recv() => {}
    }
    cx.printer.note("cancelling the build; press Ctrl-C again to leave it alone");
    let cancelled = async {
        cancel(cx, client, build).await;
        follow.await
    };
    tokio::select! {
        result = cancelled => result,
        _ = interrupts.recv() => {
            cx.printer.note(format!("left; `kiln watch {build}` follows it again"));
            Ok(ExitStatus::Cancelled)
        }
    }
}

async fn cancel(cx: &Cx<'_>, client: &Client, build: &str) {
    let request = CancelBuildRequest {
        build: build.to_owned(),
        job: String::new(),
        reason: "interrupted at the terminal".into(),
    };
    if let Err(error) = client.cancel_build(request).await {
        cx.printer.failure(&error.into());
    }
}

async fn show(cx: &Cx<'_>, client: &Client, build: &str) -> Result {
    let jobs = follow::get(client, build).await?.jobs;
    let job = jobs.first().ok_or_else(|| Failure::internal("the build has no job"))?;
    let log = log(cx, client, job.id.clone());
    let done = follow::until_done(client, build, |_| {});
    tokio::pin!(log, done);
    tokio::select! {
        result = &mut log => { result?; done.await? }
        result = &mut done => {
            result?;
            // A job that never began has no log to wait for.
            if let Ok(result) = tokio::time::timeout(LOG_END, ended(client, build, log)).await {
                result?;
            }
        }
    }
    let answer = follow::get(client, build).await?;
    let state = answer.build.clone().unwrap_or_default().state();
    if cx.printer.is_json() {
        let jobs: serde_json::Value = answer.jobs.iter().map(json::job).collect();
        let build = answer.build.as_ref().map(json::build);
        cx.printer.json(&serde_json::json!({ "build": build, "jobs": jobs }))?;
    }
    follow::conclude(cx, &answer)?;
    artifacts(cx, client, build).await?;
    Ok(ExitStatus::of_run(state, &answer.jobs))
}

async fn ended(client: &Client, build: &str, log: impl Future<Output = Result<()>>) -> Result<()> {
    let jobs = follow::get(client, build).await?.jobs;
    if jobs.iter().all(|job| job.started_ms == 0) { Ok(()) } else { log.await }
}

/// The job's own output, as it comes.
async fn log(cx: &Cx<'_>, client: &Client, job: String) -> Result<()> {
    let mut pieces = client.logs(LogRequest { job, ..Default::default() });
    while let Some(piece) = pieces.try_next().await? {
        if !cx.printer.is_json() {
            cx.printer.bytes(&piece.data)?;
        }
        if let Some(stage) = piece.stage.filter(|_| cx.printer.verbose() > 0) {
            cx.printer.note(format!("stage {} at {}", stage.name, time::moment(stage.time_ms)));
        }
        if piece.truncated {
            cx.printer.warning("the end of the log is missing");
        }
    }
    Ok(())
}

async fn artifacts(cx: &Cx<'_>, client: &Client, build: &str) -> Result<()> {
    if cx.printer.is_json() {
        return Ok(());
    }
    let request = v1::ListArtifactsRequest { build: build.to_owned(), job: String::new() };
    let found = client.list_artifacts(request).await?.artifacts;
    for file in found.into_iter().filter_map(|found| found.artifact) {
        let size = units::show_size(file.size);
        cx.printer.note(format!("artifact {} ({size}, sha256 {})", file.name, file.sha256));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_of_git_addresses() {
        let parts = |text| {
            let source = git_source(text);
            (source.url, source.r#ref)
        };
        let two = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(parts("https://h/a/b.git@main"), two("https://h/a/b.git", "main"));
        assert_eq!(parts("ssh://git@h/a/b@release/1"), two("ssh://git@h/a/b", "release/1"));
        assert_eq!(parts("ssh://git@h/a/b"), two("ssh://git@h/a/b", ""));
        assert_eq!(parts("/srv/a.git@v1"), two("/srv/a.git", "v1"));
    }
}
