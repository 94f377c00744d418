//! `kiln secret`: values that jobs need and nobody may see. No command shows one.

use std::path::PathBuf;

use clap::Subcommand;
use kiln_sdk::v1::{
    DeleteSecretRequest, ListSecretsRequest, ReencryptSecretsRequest, SecretInfo, SetSecretRequest,
};
use serde_json::{Value, json};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    json, secrets,
    table::Table,
    time,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set a secret of a project; its value is read from a file or from standard input
    Set {
        /// Name of capitals, digits and _, as TOKEN
        name: String,
        /// Project of the secret
        #[arg(long, value_name = "NAME", default_value = "default")]
        project: String,
        /// File that holds the value; - for standard input
        #[arg(short, long, value_name = "FILE", default_value = "-")]
        file: PathBuf,
    },
    /// List the secrets of a project, without their values
    List {
        /// Project of the secrets
        #[arg(long, value_name = "NAME", default_value = "default")]
        project: String,
    },
    /// Delete a secret of a project
    Delete {
        name: String,
        /// Project of the secret
        #[arg(long, value_name = "NAME", default_value = "default")]
        project: String,
    },
    /// Encrypt all values with the server's first key, so that the others can be removed
    Reencrypt,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        match self.command {
            Command::Set { name, project, file } => {
                let value = secrets::read_value(&file)?;
                let request = SetSecretRequest { project, name, value };
                let answer = cx.client().await?.set_secret(request).await?;
                let info = answer.secret.unwrap_or_default();
                if cx.printer.is_json() {
                    let mut shown = json::secret(&info);
                    shown["created"] = answer.created.into();
                    cx.printer.json(&shown)?;
                } else {
                    let what = if answer.created { "is set" } else { "has a new value" };
                    cx.printer.line(format!("{} of project {} {what}", info.name, info.project))?;
                }
            }
            Command::List { project } => {
                let request = ListSecretsRequest { project };
                list(cx, &cx.client().await?.list_secrets(request).await?.secrets)?;
            }
            Command::Delete { name, project } => {
                let request = DeleteSecretRequest { project: project.clone(), name: name.clone() };
                cx.client().await?.delete_secret(request).await?;
                if cx.printer.is_json() {
                    let shown = json!({ "name": name, "project": project, "deleted": true });
                    cx.printer.json(&shown)?;
                } else {
                    cx.printer.line(format!("{name} of project {project} is deleted"))?;
                }
            }
            Command::Reencrypt => {
                let request = ReencryptSecretsRequest {};
                let answer = cx.client().await?.reencrypt_secrets(request).await?;
                if cx.printer.is_json() {
                    cx.printer.json(&json!({ "count": answer.count, "key": answer.key }))?;
                } else {
                    let text = format!(
                        "{} values were encrypted anew; all are encrypted with key {}",
                        answer.count, answer.key
                    );
                    cx.printer.line(text)?;
                }
            }
        }
        Ok(ExitStatus::Succeeded)
    }
}

fn list(cx: &Cx<'_>, all: &[SecretInfo]) -> Result<()> {
    if cx.printer.is_json() {
        let all: Value = all.iter().map(json::secret).collect();
        return Ok(cx.printer.json(&json!({ "secrets": all }))?);
    }
    let mut table = Table::new(&["SECRET", "PROJECT", "SET", "BY", "KEY"]);
    for secret in all {
        table.row([
            secret.name.as_str().into(),
            secret.project.as_str().into(),
            time::moment(secret.set_ms).into(),
            secret.set_by.as_str().into(),
            secret.key.as_str().into(),
        ]);
    }
    Ok(cx.printer.table(&table)?)
}
