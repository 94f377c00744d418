//! `kiln server`: a server for a real deployment.

use std::{net::SocketAddr, path::PathBuf};

use kiln_server::Config;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    cmd::{Cx, Result},
    context,
    exit::ExitStatus,
    failure::Failure,
    roles,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Read the configuration, print it as it would be used, and end
    #[arg(long)]
    check_config: bool,
}

/// What `server` and `migrate` take of the configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct Settings {
    /// TOML file; environment and flags override it
    #[arg(long, value_name = "FILE", env = "KILN_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Address to listen on, as 127.0.0.1:7420
    #[arg(long, value_name = "ADDRESS", env = "KILN_LISTEN", hide_env_values = true)]
    listen: Option<SocketAddr>,
    /// Folder of logs, artifacts and the first administrator's token
    #[arg(long, value_name = "DIR", env = "KILN_DATA", hide_env_values = true)]
    data: Option<PathBuf>,
    /// sqlite:PATH or postgres://…; keep a password in the environment or the file
    #[arg(long, value_name = "URL", env = "KILN_DATABASE", hide_env_values = true)]
    database: Option<String>,
    /// Where logs and artifacts are: file:///PATH or s3://BUCKET/PREFIX [default: the data folder, for one server]
    #[arg(long, value_name = "URL", env = "KILN_STORAGE_URL", hide_env_values = true)]
    storage_url: Option<String>,
}

impl Settings {
    pub(crate) fn merge(self) -> Result<Config> {
        let mut config: Config = match &self.config {
            Some(path) => roles::read_toml(path)?,
            None => Config { data_dir: context::data_dir(), ..Config::default() },
        };
        roles::set(&mut config.listen, self.listen);
        roles::set(&mut config.data_dir, self.data);
        roles::set(&mut config.database, self.database);
        roles::set(&mut config.storage.url, self.storage_url);
        roles::set(&mut config.secrets.key, roles::secrets_key());
        check(&config)?;
        Ok(config)
    }
}

pub(crate) fn check(config: &Config) -> Result<()> {
    config.check().map_err(|error| {
        let mut failure = Failure::usage("the configuration can't be used");
        failure.fields = error
            .0
            .into_iter()
            .map(|invalid| (invalid.field.to_owned(), invalid.message))
            .collect();
        failure
    })
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let config = self.settings.merge()?;
        if self.check_config {
            show(cx, config)?;
            return Ok(ExitStatus::Succeeded);
        }
        open_many_files();
        let stop = roles::stop_on_signal(cx.printer)?;
        let failed = |error| roles::failed("the server", &error);
        let running = kiln_server::serve(config, stop.token()).await.map_err(failed)?;
        cx.printer.note(format!("listening on http://{}", running.addr));
        running.wait().await.map_err(failed)?;
        Ok(ExitStatus::Succeeded)
    }
}

/// Each agent is a connection or two; the usual limit of a thousand open files is one for programs that still use
/// `select`. Not in a process that runs jobs, which would inherit it.
fn open_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, limit = limit.current, "the limit of open files stays");
    }
}

/// The configuration as a file, without the password of the database.
fn show(cx: &Cx<'_>, mut config: Config) -> Result<()> {
    config.database = without_password(&config.database_url());
    let text = toml::to_string(&config).map_err(|error| Failure::internal(error.to_string()))?;
    Ok(cx.printer.bytes(text.as_bytes())?)
}

fn without_password(url: &str) -> String {
    let parts = url.split_once("://").and_then(|(scheme, rest)| {
        let (login, host) = rest.rsplit_once('@')?;
        let (user, _) = login.split_once(':')?;
        Some(format!("{scheme}://{user}:…@{host}"))
    });
    parts.unwrap_or_else(|| url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let shown = without_password("postgres://kiln:se@cret@db:5432/kiln");
        assert_eq!(shown, "postgres://kiln:…@db:5432/kiln");
        assert_eq!(without_password("sqlite:/a@b:c"), "sqlite:/a@b:c");
    }
}
