//! A commit of a git repository into a workspace, by the `git` program: with an environment of its own, no hooks, no
//! prompts, only the protocols that are allowed. Keys stay with this process's user and never enter a container; the
//! credential of a URL is a file beside the workspace for as long as git needs it.

mod address;
#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

pub(crate) use self::address::Address;
use crate::{backend::Failure, run::Run};

/// What of git's output is kept; a remote can send any amount.
const MAX_OUTPUT: u64 = 32 << 10;
const PROTOCOLS: [&str; 4] = ["https", "http", "ssh", "git"];
/// What git and ssh need of this process's environment.
const INHERITED: [&str; 8] = [
    "PATH",
    "SSH_AUTH_SOCK",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
];

/// What to check out.
#[derive(Debug)]
pub(crate) struct Checkout<'a> {
    pub(crate) from: Address<'a>,
    /// Branch, tag or full commit id; empty is the default branch.
    pub(crate) reference: &'a str,
    pub(crate) submodules: bool,
    /// A path on this machine is a repository too.
    pub(crate) allow_local: bool,
}

struct Ran {
    status: ExitStatus,
    out: String,
    err: String,
}

impl Checkout<'_> {
    /// Fills the (empty) workspace and says in the log what was checked out. Cancelled by being dropped.
    pub(crate) async fn run(&self, run: &Run) -> Result<String, Failure> {
        let (scheme, url) = (self.from.scheme(), self.from.argument());
        let local = self.is_local();
        if local && !self.allow_local {
            return Err(Failure::user(format!(
                "source.git.url: {url} is a path, and this agent does not allow local repositories (allow_local_git)"
            )));
        }
        if !local && !PROTOCOLS.contains(&scheme) {
            return Err(Failure::user(format!(
                "source.git.url: {scheme:?} is not allowed; use https, http, ssh or git"
            )));
        }
        let _home = self
            .write_config(run)
            .map_err(|error| Failure::infra(format!("git's configuration: {error}")))?;
        self.must(run, &["init", "--quiet", "."]).await?;
        self.fetch(run, &url).await?;
        self.must(run, &["checkout", "--quiet", "--detach", "FETCH_HEAD"]).await?;
        if self.submodules {
            // Submodules with relative addresses lie beside this one.
            self.must(run, &["remote", "add", "origin", &url]).await?;
            self.must(run, &["submodule", "update", "--init", "--recursive", "--depth", "1"])
                .await?;
        }
        let commit = self.must(run, &["rev-parse", "HEAD"]).await?.out.trim().to_owned();
        say(run, &format!("checked out {commit} of {}", self.from.public())).await?;
        Ok(commit)
    }

    async fn fetch(&self, run: &Run, url: &str) -> Result<(), Failure> {
        let wanted = if self.reference.is_empty() { "HEAD" } else { self.reference };
        let fetch = [
            "fetch",
            "--quiet",
            "--depth",
            "1",
            "--no-tags",
            "--no-recurse-submodules",
            "--end-of-options",
        ];
        let mut args = fetch.to_vec();
        args.extend([url, wanted]);
        let ran = self.git(run, &args).await?;
        if ran.status.success() {
            return Ok(());
        }
        let missing =
            ["couldn't find remote ref", "not our ref", "no such remote ref", "invalid refspec"];
        if missing.iter().any(|text| ran.err.to_lowercase().contains(text)) {
            let of = self.from.public();
            return Err(Failure::user(format!("source.git.ref: {of} has no {wanted:?}")));
        }
        Err(self.failed(&args, &ran))
    }

    async fn must(&self, run: &Run, args: &[&str]) -> Result<Ran, Failure> {
        let ran = self.git(run, args).await?;
        if ran.status.success() { Ok(ran) } else { Err(self.failed(args, &ran)) }
    }

    fn failed(&self, args: &[&str], ran: &Ran) -> Failure {
        let verb = args.first().copied().unwrap_or_default();
        let last =
            ran.err.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        let of = self.from.public();
        Failure::infra(format!("git {verb} of {of} failed ({}): {last}", ran.status))
    }

    async fn git(&self, run: &Run, args: &[&str]) -> Result<Ran, Failure> {
        let mut child = command(run, args).spawn().map_err(|error| {
            Failure::infra(format!("git can't be started: {error}; is it installed?"))
        })?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (out, err, status) = tokio::join!(bounded(out), bounded(err), child.wait());
        let status = status.map_err(|error| Failure::infra(format!("git: {error}")))?;
        let ran = Ran { status, out, err };
        if !ran.err.trim().is_empty() {
            say(run, &ran.err).await?;
        }
        Ok(ran)
    }

    /// The only configuration that git reads. A file, because what is given on the command line does not reach the
    /// git that serves a local repository.
    fn write_config(&self, run: &Run) -> io::Result<Home> {
        let mut text = "[core]\n\thooksPath = /dev/null\n[advice]\n\tdetachedHead = false\n\
            [init]\n\tdefaultBranch = main\n[gc]\n\tauto = 0\n[protocol]\n\tallow = never\n"
            .to_owned();
        for protocol in PROTOCOLS {
            text.extend(["[protocol \"", protocol, "\"]\n\tallow = always\n"]);
        }
        if self.is_local() {
            text.push_str("[protocol \"file\"]\n\tallow = always\n[safe]\n\tdirectory = *\n");
        }
        let home = Home(home(run));
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&home.0)?;
        if let Some(line) = self.from.credential() {
            text.push_str("[credential]\n\thelper = store\n");
            let mut file = fs::OpenOptions::new();
            file.write(true).create(true).truncate(true).mode(0o600);
            file.open(home.0.join(".git-credentials"))?.write_all(line.as_bytes())?;
        }
        fs::write(config(run), text)?;
        Ok(home)
    }

    fn is_local(&self) -> bool {
        self.from.argument().starts_with('/')
    }
}

fn command(run: &Run, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.env_clear();
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .envs([
            ("LC_ALL", "C"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_ASKPASS", ""),
            ("SSH_ASKPASS", ""),
            ("GIT_SSH_COMMAND", "ssh -oBatchMode=yes"),
        ])
        .env("HOME", home(run))
        .env("GIT_CONFIG_GLOBAL", config(run))
        .args(args)
        .current_dir(run.workspace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn config(run: &Run) -> PathBuf {
    run.dir().join("git.config")
}

/// Git's home, with the credential of the URL. What is in it is gone when the checkout is over.
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "git's home can't be removed");
        }
    }
}

fn home(run: &Run) -> PathBuf {
    run.dir().join("git.home")
}

async fn say(run: &Run, text: &str) -> Result<(), Failure> {
    run.say(text)
        .await
        .map_err(|error| Failure::infra(format!("the log can't be written: {error}")))
}

/// The first of what comes; the rest is read and dropped, so that git never waits for us.
async fn bounded(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut kept = vec![];
    let _what_came_is_kept = (&mut from).take(MAX_OUTPUT).read_to_end(&mut kept).await;
    let _dropped = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

/// Unpacks a tar archive compressed with zstd. Blocks.
pub(crate) fn unpack(archive: &Path, into: &Path, most: u64) -> io::Result<()> {
    // The library says which file; why stands below that.
    unpack_entries(archive, into, most).map_err(|error| {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(below) = cause.source() {
            cause = below;
        }
        io::Error::other(format!("{error}: {cause}"))
    })
}

fn unpack_entries(archive: &Path, into: &Path, most: u64) -> io::Result<()> {
    let file = io::BufReader::new(fs::File::open(archive)?);
    let plain = Limited { inner: zstd::Decoder::with_buffer(file)?, left: most };
    let mut tar = tar::Archive::new(plain);
    tar.set_preserve_permissions(true);
    tar.set_preserve_ownerships(false);
    tar.set_unpack_xattrs(false);
    for entry in tar.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let path = entry.path()?.into_owned();
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link()) {
            let message =
                format!("{}: only files, folders and links can be unpacked", path.display());
            return Err(io::Error::other(message));
        }
        if !entry.unpack_in(into)? {
            return Err(io::Error::other(format!(
                "{}: the path leaves the workspace",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Ends a stream that is longer than it may be.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: io::Read> io::Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("the archive unpacks to more than the agent allows"))?;
        Ok(read)
    }
}
