//! Which server, and with which token: flags, then environment, then the configuration file, then this machine's own.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use kiln_sdk::{Fingerprint, Options, Trust};
use serde::{Deserialize, Serialize};

use crate::{args::Global, cmd::Result, failure::Failure};

/// Where `kiln up` listens.
pub(crate) const DEFAULT_SERVER: &str = "http://127.0.0.1:7420";
/// Written by a server at its first start, readable by its own user only.
pub(crate) const ADMIN_TOKEN: &str = "admin.token";
/// Written by a server with TLS at each start: the authorities that sign its certificate.
pub(crate) const AUTHORITIES: &str = "ca.pem";

/// The configuration file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    /// The context in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// A name for a server. The token stays in a file of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    pub(crate) server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_fingerprint: Option<String>,
}

/// `$XDG_CONFIG_HOME/kiln/config.toml`.
pub(crate) fn path() -> Result<PathBuf> {
    let base = home("XDG_CONFIG_HOME", ".config")
        .ok_or_else(|| Failure::usage("no home folder").hint("set HOME or XDG_CONFIG_HOME"))?;
    Ok(base.join("kiln/config.toml"))
}

/// The server's data folder where nobody names one.
pub(crate) fn data_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("KILN_DATA").filter(|dir| !dir.is_empty()) {
        return dir.into();
    }
    if rustix::process::geteuid().is_root() {
        return "/var/lib/kiln".into();
    }
    home("XDG_DATA_HOME", ".local/share").unwrap_or_else(|| ".".into()).join("kiln")
}

fn home(variable: &str, below: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    set(variable).or_else(|| Some(set("HOME")?.join(below)))
}

impl File {
    pub(crate) fn load() -> Result<Self> {
        let Ok(path) = path() else { return Ok(Self::default()) };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(Failure::file("read", &path, &error)),
        };
        toml::from_str(&text).map_err(|error| {
            Failure::usage(format!("{}: {}", path.display(), error.message()))
                .hint("repair the file, or remove it and use `kiln config set`")
        })
    }

    pub(crate) fn save(&self) -> Result<()> {
        let path = path()?;
        let text = toml::to_string(self).map_err(|error| Failure::internal(error.to_string()))?;
        let folder = path.parent().unwrap_or(&path);
        fs::create_dir_all(folder).map_err(|error| Failure::file("make", folder, &error))?;
        let fresh = path.with_extension("toml.new");
        fs::write(&fresh, text)
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|error| Failure::file("write", &path, &error))
    }

    /// The context of this very server.
    fn of_server(&self, server: &str) -> Option<&Context> {
        let same = |context: &&Context| {
            context.server.trim_end_matches('/') == server.trim_end_matches('/')
        };
        self.contexts.values().find(same)
    }

    /// The context that is asked for, or the current one.
    pub(crate) fn chosen(&self, asked: Option<&str>) -> Result<Option<&Context>> {
        let Some(name) = asked.or(self.current.as_deref()) else { return Ok(None) };
        self.contexts.get(name).map(Some).ok_or_else(|| {
            Failure::usage(format!("there is no context {name:?}"))
                .hint("`kiln config list` shows them, `kiln config set` makes one")
        })
    }
}

/// A name that needs no quotes in a shell.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if (1..=100).contains(&name.len()) && !name.starts_with('-') && name.chars().all(fits) {
        return Ok(());
    }
    Err(Failure::usage(format!("{name:?} can't be the name of a context"))
        .hint("use 1 to 100 of A-Z a-z 0-9 . _ -"))
}

/// As the client reads addresses; a context with a wrong one would fail much later.
pub(crate) fn check_server(server: &str) -> Result<()> {
    let scheme = ["http://", "https://"].iter().find_map(|scheme| server.strip_prefix(scheme));
    if scheme.is_some_and(|host| !host.is_empty() && !host.starts_with([':', '/'])) {
        return Ok(());
    }
    Err(Failure::usage(format!("bad server address {server:?}"))
        .hint("write it as http://host:port or https://host:port"))
}

/// How to reach the server.
pub(crate) fn options(global: &Global) -> Result<Options> {
    let file = File::load()?;
    let context = match (&global.server, &global.context) {
        // A server that is named alone must not get the token of another one's context.
        (Some(server), None) => file.of_server(server),
        (None, None) if file.current.is_none() => file.of_server(DEFAULT_SERVER),
        (_, asked) => file.chosen(asked.as_deref())?,
    };
    let server = global.server.clone().or_else(|| context.map(|context| context.server.clone()));
    let server = server.unwrap_or_else(|| DEFAULT_SERVER.to_owned());
    let mut options = Options::new(server.trim_end_matches('/'));
    options.user_agent = concat!("kiln/", env!("CARGO_PKG_VERSION")).into();
    options.trust = trust(global, context, &server)?;
    Ok(match token(global, context, &server)? {
        Some(secret) => options.token(secret),
        None => options,
    })
}

/// Whom to trust. Only a server of this machine is believed to be of the authority in this machine's data folder.
fn trust(global: &Global, context: Option<&Context>, server: &str) -> Result<Trust> {
    let ca_file = global.ca_file.as_ref();
    let ca_fingerprint = global.ca_fingerprint.as_deref();
    // What is said for this call replaces what the context says.
    let context = context.filter(|_| ca_file.is_none() && ca_fingerprint.is_none());
    let ca_file = ca_file.or_else(|| context?.ca_file.as_ref());
    let ca_fingerprint = ca_fingerprint.or_else(|| context?.ca_fingerprint.as_deref());
    let ca_fingerprint = ca_fingerprint.map(fingerprint).transpose()?;
    let ca_pem = match ca_file {
        Some(path) => Some(fs::read(path).map_err(|e| Failure::file("read", path, &e))?),
        None if ca_fingerprint.is_none() && is_local(server) => {
            fs::read(data_dir().join(AUTHORITIES)).ok()
        }
        None => None,
    };
    Ok(Trust { ca_pem, ca_fingerprint, identity: None })
}

pub(crate) fn fingerprint(text: &str) -> Result<Fingerprint> {
    text.parse().map_err(|wrong| Failure::usage(format!("bad fingerprint {text:?}: it {wrong}")))
}

fn token(global: &Global, context: Option<&Context>, server: &str) -> Result<Option<String>> {
    if let Some(path) = &global.token_file {
        return read_secret(path).map(Some);
    }
    if let Some(secret) = std::env::var("KILN_TOKEN").ok().filter(|secret| !secret.is_empty()) {
        return Ok(Some(secret.trim().to_owned()));
    }
    if let Some(path) = context.and_then(|context| context.token_file.as_ref()) {
        return read_secret(path).map(Some);
    }
    // Only a server of this machine gets this machine's own token.
    if is_local(server) {
        return Ok(read_secret(&data_dir().join(ADMIN_TOKEN)).ok());
    }
    Ok(None)
}

/// A secret that a file holds, on one line.
pub(crate) fn read_secret(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(|error| Failure::file("read", path, &error))?;
    let secret = text.trim();
    if secret.is_empty() || secret.contains(char::is_whitespace) {
        return Err(Failure::usage(format!("{} holds no token", path.display()))
            .hint("it must hold the token and nothing else"));
    }
    Ok(secret.to_owned())
}

fn is_local(server: &str) -> bool {
    let rest = server.strip_prefix("http://").or_else(|| server.strip_prefix("https://"));
    let authority = rest.unwrap_or_default().split('/').next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    matches!(host, "127.0.0.1" | "localhost" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_token_stays_on_this_machine() {
        for server in ["http://127.0.0.1:7420", "http://localhost", "https://[::1]:1/"] {
            assert!(is_local(server), "{server}");
        }
        for server in
            ["http://127.0.0.1.example.org:80", "http://localhost@example.org", "ftp://localhost"]
        {
            assert!(!is_local(server), "{server}");
        }
    }
}
