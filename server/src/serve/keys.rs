//! The keys of secrets: from the environment, a file, or for the embedded database one in the data folder.

use std::{os::unix::fs::PermissionsExt, path::Path};

use super::{Error, Result};
use crate::{
    app::App,
    config::{self, Config, Invalid},
    data::Folder,
    secrets::{Keys, read},
};

/// Finds the keys and gives them to the use cases. A server that lacks the key of a stored value does not start: jobs
/// would fail on it that run on another.
pub(super) async fn load(config: &Config, folder: &Folder, app: &App) -> Result<()> {
    let keys =
        match (config.secrets.key.get(), &config.secrets.key_file) {
            (Some(text), _) => Some(Keys::parse(text).map_err(|error| {
                invalid("secrets.key", format!("(or KILN_SECRETS_KEY) {error}"))
            })?),
            (None, Some(path)) => Some(of_file(path)?),
            (None, None) if config.is_postgres() => None,
            (None, None) => match folder.secrets_key()? {
                Some(keys) => Some(keys),
                // A new key would not open what the old one closed.
                None if !app.use_keys(None).await?.is_empty() => None,
                None => Some(folder.make_secrets_key()?),
            },
        };
    let unknown = app.use_keys(keys).await?;
    if unknown.is_empty() { Ok(()) } else { Err(Error::SecretKeys(unknown)) }
}

fn of_file(path: &Path) -> Result<Keys, config::Error> {
    let shown = path.display();
    let failed = |message| invalid("secrets.key_file", message);
    let keys = read(path).map_err(|error| failed(format!("{shown} can't be read: {error}")))?;
    if std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o007 != 0) {
        tracing::warn!(path = %shown, "every user of this machine can use the keys of secrets; chmod 600");
    }
    keys.map_err(|error| failed(format!("{shown} {error}")))
}

fn invalid(field: &'static str, message: String) -> config::Error {
    config::Error(vec![Invalid { field, message }])
}
