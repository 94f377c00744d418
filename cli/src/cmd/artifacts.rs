//! `kiln artifacts`: what jobs kept.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use kiln_sdk::{
    Client,
    v1::{Artifact, JobArtifact, ListArtifactsRequest},
};
use serde_json::{Value, json};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    failure::Failure,
    json, names,
    table::Table,
    units,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the artifacts of a build or a job
    List {
        /// A build, a job's id, or BUILD/NAME
        #[arg(value_name = "BUILD|JOB", default_value = "last")]
        target: String,
    },
    /// Download one artifact, or all
    Get {
        /// A build, a job's id, or BUILD/NAME
        #[arg(value_name = "BUILD|JOB")]
        target: String,
        /// Name of the artifact [default: all]
        name: Option<String>,
        /// File for one artifact, folder for all [default: the current folder]
        #[arg(short = 'o', long = "to", value_name = "PATH")]
        to: Option<PathBuf>,
    },
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        match self.command {
            Command::List { target } => list(cx, &find(&client, &target).await?)?,
            Command::Get { target, name, to } => {
                let found = find(&client, &target).await?;
                get(cx, &client, found, name.as_deref(), to).await?;
            }
        }
        Ok(ExitStatus::Succeeded)
    }
}

async fn find(client: &Client, target: &str) -> Result<Vec<JobArtifact>> {
    let one = target.starts_with("job_") || target.contains('/');
    let request = if one {
        let job = names::job(client, target).await?;
        ListArtifactsRequest { build: job.build, job: job.id }
    } else {
        let build = names::build_id(client, target).await?;
        ListArtifactsRequest { build, job: String::new() }
    };
    Ok(client.list_artifacts(request).await?.artifacts)
}

fn list(cx: &Cx<'_>, found: &[JobArtifact]) -> Result<()> {
    if cx.printer.is_json() {
        let artifacts: Value = found.iter().map(json::artifact).collect();
        return Ok(cx.printer.json(&json!({ "artifacts": artifacts }))?);
    }
    let mut table = Table::new(&["JOB", "SIZE", "SHA256", "NAME"]);
    for artifact in found {
        let file = artifact.artifact.clone().unwrap_or_default();
        let size = units::show_size(file.size);
        table.row([
            artifact.job_name.as_str().into(),
            size.into(),
            file.sha256.into(),
            file.name.into(),
        ]);
    }
    if table.is_empty() {
        cx.printer.note("no artifacts");
        return Ok(());
    }
    Ok(cx.printer.table(&table)?)
}

async fn get(
    cx: &Cx<'_>,
    client: &Client,
    mut found: Vec<JobArtifact>,
    name: Option<&str>,
    to: Option<PathBuf>,
) -> Result<()> {
    if let Some(name) = name {
        found.retain(|artifact| artifact.artifact.as_ref().is_some_and(|file| file.name == name));
    }
    if found.is_empty() {
        let what =
            name.map_or_else(|| "no artifacts".to_owned(), |name| format!("no artifact {name:?}"));
        return Err(
            Failure::usage(format!("there is {what}")).hint("`kiln artifacts list` shows them")
        );
    }
    let several = {
        let mut names: Vec<_> =
            found.iter().map(|a| a.artifact.clone().unwrap_or_default().name).collect();
        names.sort();
        let all = names.len();
        names.dedup();
        names.len() < all
    };
    if several && name.is_some() {
        return Err(Failure::usage("several jobs have an artifact of that name")
            .hint("name the job as BUILD/JOB"));
    }
    for artifact in found {
        let file = artifact.artifact.unwrap_or_default();
        let dest = match (&to, name) {
            (Some(path), Some(_)) if !is_folder(path) => path.clone(),
            (Some(path), Some(_)) => path.join(base(&file)),
            (None, Some(_)) => base(&file).into(),
            // Two jobs may keep files of one name: each job then has a folder of its own.
            (folder, None) => {
                let folder = folder.clone().unwrap_or_else(|| ".".into());
                let folder = if several { folder.join(safe(&artifact.job_name)?) } else { folder };
                folder.join(safe(&file.name)?)
            }
        };
        if let Some(parent) = dest.parent() {
            std::fs::create_dir_all(parent).map_err(|e| Failure::file("make", parent, &e))?;
        }
        let done = client.download(&artifact.job, &file.name, &dest).await?;
        mode(&dest, file.mode)?;
        if cx.printer.is_json() {
            let path = dest.display().to_string();
            cx.printer
                .json_line(&json!({ "path": path, "size": done.size, "sha256": done.sha256 }))?;
        } else {
            let size = units::show_size(file.size);
            cx.printer.line(format!("{} ({size}, sha256 {})", dest.display(), done.sha256))?;
        }
    }
    Ok(())
}

/// It is one, or is to be one: `out/`.
fn is_folder(path: &Path) -> bool {
    path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Executables stay executable; no other bit is taken from a build.
fn mode(path: &std::path::Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if mode & 0o111 == 0 {
        return Ok(());
    }
    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, permissions).map_err(|e| Failure::file("change", path, &e))
}

fn base(file: &Artifact) -> &str {
    file.name.rsplit('/').next().unwrap_or(&file.name)
}

/// A name from a build must not lead out of the folder.
fn safe(name: &str) -> Result<&str> {
    let bad = name.starts_with('/') || name.split('/').any(|part| matches!(part, "" | "." | ".."));
    if bad || name.contains('\0') {
        return Err(Failure::usage(format!("the artifact's name {name:?} is not a relative path"))
            .hint("download it by name with -o FILE"));
    }
    Ok(name)
}
