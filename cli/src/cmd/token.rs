//! `kiln token`: who may call the server.

use clap::{Subcommand, ValueEnum};
use kiln_sdk::v1::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest, Role, Token};
use serde_json::{Value, json};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    json,
    table::Table,
    time, units, words,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token; its secret is printed once, on standard output
    Create {
        /// A name for people
        name: String,
        /// What it may do
        #[arg(long, value_enum)]
        role: RoleName,
        /// Only in this project
        #[arg(long, value_name = "NAME")]
        project: Option<String>,
        /// How long it lasts, as 90d [default: for ever; an enroller's: 1h]
        #[arg(long = "for", value_name = "TIME", value_parser = units::duration)]
        duration: Option<i64>,
    },
    /// List all tokens, without their secrets
    List,
    /// Make a token void
    Revoke {
        /// Id of the token
        token: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleName {
    /// Look
    Reader,
    /// Submit, cancel and retry builds
    Submitter,
    /// Everything
    Admin,
    /// Enrol one agent
    Enroller,
}

impl RoleName {
    const fn role(self) -> Role {
        match self {
            Self::Reader => Role::Reader,
            Self::Submitter => Role::Submitter,
            Self::Admin => Role::Admin,
            Self::Enroller => Role::Enroller,
        }
    }
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        match self.command {
            Command::List => list(cx, &client.list_tokens(ListTokensRequest {}).await?.tokens)?,
            Command::Revoke { token } => {
                client.revoke_token(RevokeTokenRequest { token: token.clone() }).await?;
                if cx.printer.is_json() {
                    cx.printer.json(&json!({ "token": token, "revoked": true }))?;
                } else {
                    cx.printer.line(format!("{token} is void"))?;
                }
            }
            Command::Create { name, role, project, duration } => {
                let request = CreateTokenRequest {
                    name,
                    role: role.role().into(),
                    project: project.unwrap_or_default(),
                    duration_ms: duration.unwrap_or(0),
                };
                let made = client.create_token(request).await?;
                let token = made.token.unwrap_or_default();
                if cx.printer.is_json() {
                    cx.printer
                        .json(&json!({ "token": json::token(&token), "secret": made.secret }))?;
                } else {
                    cx.printer
                        .note(format!("{}: keep the secret, it is not shown again", token.id));
                    cx.printer.line(made.secret)?;
                }
            }
        }
        Ok(ExitStatus::Succeeded)
    }
}

fn list(cx: &Cx<'_>, tokens: &[Token]) -> Result<()> {
    if cx.printer.is_json() {
        let tokens: Value = tokens.iter().map(json::token).collect();
        return Ok(cx.printer.json(&json!({ "tokens": tokens }))?);
    }
    let mut table = Table::new(&["TOKEN", "NAME", "ROLE", "PROJECT", "CREATED", "ENDS"]);
    for token in tokens {
        let ends =
            if token.expires_ms == 0 { "never".into() } else { time::moment(token.expires_ms) };
        let project = if token.project.is_empty() { "all" } else { &token.project };
        table.row([
            token.id.as_str().into(),
            token.name.as_str().into(),
            words::role(token.role()).into(),
            project.into(),
            time::moment(token.created_ms).into(),
            ends.into(),
        ]);
    }
    Ok(cx.printer.table(&table)?)
}
