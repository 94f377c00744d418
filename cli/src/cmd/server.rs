//! `kiln server`: a server for a real deployment.

use std::{net::SocketAddr, path::PathBuf};

use kiln_server::Config;

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
    /// Object store of logs and artifacts [default: the data folder]
    #[arg(long, value_name = "URL", env = "KILN_ARTIFACTS_URL", hide_env_values = true)]
    artifacts_url: Option<String>,
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
        roles::set(&mut config.artifacts_url, self.artifacts_url);
        check(&config)?;
        Ok(config)
    }
}

pub(crate) fn check(config: &Config) -> Result<()> {
    config.check().map_err(|invalid| {
        let mut failure = Failure::usage("the configuration can't be used");
        failure.fields.push((invalid.field.to_owned(), invalid.message));
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
        let stop = roles::stop_on_signal(cx.printer)?;
        let failed = |error| roles::failed("the server", &error);
        let running = kiln_server::serve(config, stop.token()).await.map_err(failed)?;
        cx.printer.note(format!("listening on http://{}", running.addr));
        running.wait().await.map_err(failed)?;
        Ok(ExitStatus::Succeeded)
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
