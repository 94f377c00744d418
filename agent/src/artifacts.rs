//! Files out of a workspace, and files of other jobs into it.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use kiln_core::session::{Artifact, Assignment};

use crate::{
    backend::Failure,
    connection::{Server, is_final},
    run::Run,
    workspace::Workspace,
};

/// What one report can name.
const MAX_FILES: usize = 5_000;
/// As long as the server takes names.
const MAX_NAME: usize = 1_000;

struct Found {
    name: String,
    file: File,
    size: u64,
    mode: u32,
}

/// A glob names a file, or a folder with all that is in it.
fn matcher(globs: &[String]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        let glob = glob.trim_start_matches("./").trim_end_matches('/');
        for text in [glob.to_owned(), format!("{glob}/**")] {
            set.add(GlobBuilder::new(&text).literal_separator(true).build()?);
        }
    }
    set.build()
}

fn is_wanted(set: &GlobSet, path: &Path) -> Result<bool, String> {
    if !set.is_match(path) {
        return Ok(false);
    }
    match path.to_str() {
        Some(name) if name.len() <= MAX_NAME && !name.chars().any(char::is_control) => Ok(true),
        _ => Err(format!(
            "artifacts: {:?} is no name for an artifact: at most 1,000 bytes of UTF-8 without control characters",
            path.to_string_lossy()
        )),
    }
}

/// The names of all files that match, and their size together. Blocks.
fn names(workspace: &Workspace, globs: &[String], most: u64) -> Result<Vec<String>, Failure> {
    let set = matcher(globs).map_err(|error| Failure::user(format!("artifacts: {error}")))?;
    let mut names = vec![];
    let mut wrong = None;
    let mut total = 0_u64;
    let visit = |path: &Path| {
        match is_wanted(&set, path) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(why) => wrong = Some(why),
        }
        total = total.saturating_add(workspace.read(path).and_then(|file| file.metadata())?.len());
        if total > most {
            wrong = Some(format!("artifacts: more than {most} bytes (resources.artifacts)"));
        } else if names.len() >= MAX_FILES {
            wrong = Some(format!("artifacts: more than {MAX_FILES} files; pack them into one"));
        }
        if wrong.is_some() {
            return Err(io::Error::other("enough"));
        }
        names.push(path.to_string_lossy().into_owned());
        Ok(())
    };
    let walked = workspace.files(visit, |path, error| {
        tracing::debug!(path = %path.display(), %error, "folder left out");
    });
    match (wrong, walked) {
        (Some(why), _) => Err(Failure::user(why)),
        (None, Err(error)) => Err(Failure::infra(format!("artifacts: {error}"))),
        (None, Ok(())) => Ok(names),
    }
}

fn open(workspace: &Workspace, name: String) -> io::Result<Found> {
    use std::os::unix::fs::MetadataExt;
    let file = workspace.read(Path::new(&name))?;
    let meta = file.metadata()?;
    Ok(Found { name, file, size: meta.len(), mode: meta.mode() & 0o777 })
}

/// Uploads what the job's globs match.
pub(crate) async fn collect(
    job: &Assignment,
    run: &Run,
    server: &Server,
) -> Result<Vec<Artifact>, Failure> {
    let (folder, globs) = (run.folder.clone(), job.spec.artifacts.clone());
    let most = job.spec.resources.artifact_bytes;
    let look = move || {
        let workspace = folder
            .make_workspace()
            .and_then(|path| Workspace::open(&path))
            .map_err(|error| Failure::infra(format!("workspace: {error}")))?;
        let names = names(&workspace, &globs, most)?;
        Ok((workspace, names))
    };
    let (workspace, names) = blocking(look).await?;
    if names.is_empty() {
        let _only_a_hint = run.say("kiln: no file matches the globs of artifacts").await;
    }
    let mut artifacts = vec![];
    let mut left = most;
    for name in names {
        let found = open(&workspace, name.clone())
            .map_err(|error| Failure::infra(format!("artifact {name}: {error}")))?;
        if found.size > left {
            return Err(Failure::user(format!(
                "artifacts: more than {most} bytes (resources.artifacts)"
            )));
        }
        let artifact = upload(found, run, server).await?;
        left = left.saturating_sub(artifact.size);
        artifacts.push(artifact);
    }
    Ok(artifacts)
}

async fn upload(found: Found, run: &Run, server: &Server) -> Result<Artifact, Failure> {
    // By its descriptor: another file can't take its place between the look and the upload.
    let path = PathBuf::from(format!("/proc/self/fd/{}", found.file.as_raw_fd()));
    let (sha256, size) = server
        .upload(run.lease, &path)
        .await
        .map_err(|error| Failure::infra(format!("artifact {}: upload: {error}", found.name)))?;
    if size != found.size {
        return Err(Failure::user(format!(
            "artifact {}: something still writes to it",
            found.name
        )));
    }
    Ok(Artifact { name: found.name, size, sha256, mode: found.mode })
}

/// Fetches a blob to a file of this lease.
pub(crate) async fn fetch(
    run: &Run,
    server: &Server,
    sha256: &str,
    what: &str,
) -> Result<PathBuf, Failure> {
    let folder = run.dir().join("fetched");
    tokio::fs::create_dir_all(&folder)
        .await
        .map_err(|error| Failure::infra(format!("{what}: {error}")))?;
    let path = folder.join(sha256);
    server.download(sha256, &path).await.map_err(|error| {
        let message = format!("{what}: download of {sha256}: {error}");
        if is_final(&error) { Failure::user(message) } else { Failure::infra(message) }
    })?;
    Ok(path)
}

/// Places the artifacts of needed jobs into the workspace.
pub(crate) async fn place(job: &Assignment, run: &Run, server: &Server) -> Result<(), Failure> {
    for input in &job.inputs {
        let fetched = fetch(run, server, &input.sha256, &format!("input {}", input.name)).await?;
        let (root, input) = (run.workspace(), input.clone());
        let copy = move || {
            let place = || -> io::Result<()> {
                let mut to = Workspace::open(&root)?.create(Path::new(&input.name), input.mode)?;
                io::copy(&mut File::open(&fetched)?, &mut to)?;
                std::fs::remove_file(&fetched)
            };
            place().map_err(|error| {
                Failure::user(format!("input {}: can't be placed: {error}", input.name))
            })
        };
        blocking(copy).await?;
    }
    Ok(())
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::infra(format!("this process ends: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use kiln_core::outcome::FailureKind;

    use super::*;

    fn found(root: &Path, globs: &[&str], most: u64) -> Result<Vec<String>, Failure> {
        let globs: Vec<_> = globs.iter().map(|&glob| glob.to_owned()).collect();
        names(&Workspace::open(root).unwrap(), &globs, most)
    }

    #[test]
    fn globs_match_files_and_folders_but_no_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("dist/deep")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(root.join("dist/a.txt"), "a").unwrap();
        fs::write(root.join("dist/deep/b.txt"), "b").unwrap();
        fs::write(root.join("c.txt"), "c").unwrap();
        symlink(dir.path().join("secret"), root.join("d.txt")).unwrap();
        symlink(dir.path(), root.join("dist/out")).unwrap();
        assert_eq!(found(&root, &["*.txt"], 100).unwrap(), ["c.txt"]);
        assert_eq!(found(&root, &["dist/"], 100).unwrap(), ["dist/a.txt", "dist/deep/b.txt"]);
        assert_eq!(found(&root, &["**/secret"], 100).unwrap(), [""; 0]);
        let error = found(&root, &["**"], 2).unwrap_err();
        assert_eq!(error.kind, FailureKind::User);
        assert!(error.message.contains("resources.artifacts"), "{error}");
    }
}
