//! `kiln submit`: a build file.

use std::path::{Path, PathBuf};

use kiln_sdk::v1::{BuildSpec, Secret, SubmitBuildRequest};
use serde_json::json;

use crate::{
    build_file::{self, BuildFile},
    cmd::{Cx, Result, run},
    exit::ExitStatus,
    failure::Failure,
    follow, json, secrets,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The build file; - for standard input
    #[arg(short, long, value_name = "FILE", default_value = "build.toml")]
    file: PathBuf,
    /// Check only: read the file, ask the server where there is one, submit nothing
    #[arg(long, conflicts_with_all = ["watch", "key"])]
    check: bool,
    /// Follow the build until it is done; the exit code is the build's
    #[arg(long)]
    watch: bool,
    /// Idempotency key: the same key with the same content names the same build
    #[arg(long)]
    key: Option<String>,
    /// Secret of this build alone; repeat for more. It is deleted when the build is done
    #[arg(long, value_name = "NAME=@FILE|-")]
    secret: Vec<String>,
    /// Project of the build
    #[arg(long, value_name = "NAME", default_value = "default")]
    project: String,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let file = build_file::load(&self.file)?;
        let stdin = self.file != Path::new("-");
        let secrets = secrets::read(&self.secret, stdin)?;
        if secrets.names.len() != secrets.given.len() {
            return Err(Failure::usage("--secret gives a value: write NAME=@FILE or NAME=-")
                .hint("a secret of the project needs no flag; name it in the secrets of a job"));
        }
        if self.check {
            return self.check(cx, file, secrets.given).await;
        }
        let client = cx.client().await?;
        let BuildFile { mut spec, folder } = file;
        if let Some(folder) = folder {
            spec.source = Some(run::upload(cx, &client, folder).await?);
        }
        let names = job_names(&spec);
        let request = SubmitBuildRequest {
            project: self.project,
            key: self.key.unwrap_or_default(),
            spec: Some(spec),
            validate_only: false,
            secrets: secrets.given,
        };
        let answer = client.submit(request).await.map_err(|error| named(error.into(), &names))?;
        let build = answer.build.ok_or_else(|| Failure::internal("the server sent no build"))?;
        if !answer.created {
            cx.printer.note("the key names a build that was submitted before");
        }
        if self.watch {
            cx.printer.note(format!("build {} submitted", build.id));
            return follow::build(cx, &client, &build.id).await;
        }
        if cx.printer.is_json() {
            cx.printer.json(&json!({ "build": json::build(&build), "created": answer.created }))?;
        } else {
            cx.printer.line(&build.id)?;
        }
        Ok(ExitStatus::Succeeded)
    }

    async fn check(&self, cx: &Cx<'_>, file: BuildFile, secrets: Vec<Secret>) -> Result {
        if let Some(folder) = file.folder.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(Failure::usage(format!("source: {} is not a folder", folder.display())));
        }
        let names = job_names(&file.spec);
        let told = |server: bool| {
            let jobs = file.spec.jobs.len();
            let text = format!("{} is valid, {jobs} jobs", self.file.display());
            if !cx.printer.is_json() {
                return cx.printer.line(text);
            }
            cx.printer.json(&json!({ "valid": true, "jobs": jobs, "checked_by_server": server }))
        };
        let client = match cx.client().await {
            Ok(client) => client,
            Err(failure) if failure.status == ExitStatus::Unavailable => {
                told(false)?;
                cx.printer.warning("checked here only: no server is reachable");
                return Ok(ExitStatus::Succeeded);
            }
            Err(failure) => return Err(failure),
        };
        let request = SubmitBuildRequest {
            project: self.project.clone(),
            spec: Some(file.spec.clone()),
            validate_only: true,
            secrets,
            ..Default::default()
        };
        client.submit(request).await.map_err(|error| named(error.into(), &names))?;
        told(true)?;
        Ok(ExitStatus::Succeeded)
    }
}

fn job_names(spec: &BuildSpec) -> Vec<String> {
    spec.jobs.iter().map(|job| job.name.clone()).collect()
}

/// `spec.jobs[2].script` is the request's word for it; the file's author knows the job by its name.
fn named(mut failure: Failure, names: &[String]) -> Failure {
    for (field, _) in &mut failure.fields {
        let rest = field.strip_prefix("spec.").unwrap_or(field).to_owned();
        let index = rest.strip_prefix("jobs[").and_then(|rest| rest.split_once(']'));
        let job = index.and_then(|(i, key)| Some((names.get(i.parse::<usize>().ok()?)?, key)));
        *field = match job {
            Some((name, key)) => format!("job {name:?}{}", key.replacen('.', ": ", 1)),
            None => rest,
        };
    }
    failure
}
