//! `kiln token`: who may call the server.

use clap::{Subcommand, ValueEnum};
use kiln_sdk::{
    Client,
    v1::{
        CreateTokenRequest, ListTokensRequest, RevokeTokenRequest, Role, RotateTokenRequest, Token,
    },
};
use serde_json::{Value, json};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    failure::Failure,
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
        /// How long it lasts, as 30d, or never [default: 90d; an enroller's: 1h]
        #[arg(long, alias = "for", value_name = "TIME", value_parser = lifetime)]
        expires: Option<Lifetime>,
    },
    /// List all tokens, without their secrets
    List,
    /// Give a token a new secret, printed once; the old one is taken for a while
    Rotate {
        /// Name or id of the token
        token: String,
        /// How long the old secret is still taken, at most 30d
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = units::duration)]
        grace: i64,
        /// The old secret is void at once: someone has it who should not
        #[arg(long, conflicts_with = "grace")]
        now: bool,
    },
    /// Make a token void
    Revoke {
        /// Id or name of the token
        token: String,
    },
}

/// A token that nobody thinks of any more must not open the server for ever.
const LIFETIME: i64 = 90 * 24 * 3_600_000;

/// How long a token lasts.
#[derive(Debug, Clone, Copy)]
enum Lifetime {
    Never,
    Ms(i64),
}

fn lifetime(text: &str) -> std::result::Result<Lifetime, String> {
    if text == "never" {
        return Ok(Lifetime::Never);
    }
    units::duration(text).map(Lifetime::Ms)
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
                let token = find(&client, token).await?;
                client.revoke_token(RevokeTokenRequest { token: token.clone() }).await?;
                if cx.printer.is_json() {
                    cx.printer.json(&json!({ "token": token, "revoked": true }))?;
                } else {
                    cx.printer.line(format!("{token} is void"))?;
                }
            }
            Command::Rotate { token, grace, now } => {
                let request = RotateTokenRequest { token, grace_ms: if now { 0 } else { grace } };
                let rotated = client.rotate_token(request).await?;
                tell(cx, &rotated.token.unwrap_or_default(), &rotated.secret)?;
            }
            Command::Create { name, role, project, expires } => {
                let request = CreateTokenRequest {
                    name,
                    role: role.role().into(),
                    project: project.unwrap_or_default(),
                    duration_ms: match (expires, role) {
                        (Some(Lifetime::Never), RoleName::Enroller) => {
                            return Err(Failure::usage("a token that enrols can't last for ever"));
                        }
                        (Some(Lifetime::Ms(time)), _) => time,
                        // The server's own defaults.
                        (Some(Lifetime::Never), _) | (None, RoleName::Enroller) => 0,
                        (None, _) => LIFETIME,
                    },
                };
                let made = client.create_token(request).await?;
                tell(cx, &made.token.unwrap_or_default(), &made.secret)?;
            }
        }
        Ok(ExitStatus::Succeeded)
    }
}

/// The secret goes to standard output, all else beside it.
fn tell(cx: &Cx<'_>, token: &Token, secret: &str) -> Result<()> {
    if cx.printer.is_json() {
        return Ok(cx.printer.json(&json!({ "token": json::token(token), "secret": secret }))?);
    }
    let ends = match token.expires_ms {
        0 => "it never ends".to_owned(),
        end => format!("it ends {}", time::moment(end)),
    };
    cx.printer.note(format!("{}: keep the secret, it is not shown again; {ends}", token.id));
    Ok(cx.printer.line(secret)?)
}

/// The id of the only token of this name; what is an id already is passed on.
async fn find(client: &Client, token: String) -> Result<String> {
    if token.starts_with("tok_") {
        return Ok(token);
    }
    let all = client.list_tokens(ListTokensRequest {}).await?.tokens;
    let mut ids = all.into_iter().filter(|one| one.name == token).map(|one| one.id);
    match (ids.next(), ids.next()) {
        (Some(id), None) => Ok(id),
        (None, _) => Err(Failure::usage(format!("there is no token {token:?}"))),
        (Some(_), Some(_)) => Err(Failure::usage(format!("several tokens are named {token:?}"))),
    }
    .map_err(|failure| failure.hint("`kiln token list` shows them with their ids"))
}

fn list(cx: &Cx<'_>, tokens: &[Token]) -> Result<()> {
    if cx.printer.is_json() {
        let tokens: Value = tokens.iter().map(json::token).collect();
        return Ok(cx.printer.json(&json!({ "tokens": tokens }))?);
    }
    let mut table = Table::new(&["TOKEN", "NAME", "ROLE", "PROJECT", "CREATED", "USED", "ENDS"]);
    for token in tokens {
        let ends =
            if token.expires_ms == 0 { "never".into() } else { time::moment(token.expires_ms) };
        let used =
            if token.last_used_ms == 0 { "never".into() } else { time::ago(token.last_used_ms) };
        let ends = if token.used_ms == 0 { ends } else { "used".into() };
        let project = if token.project.is_empty() { "all" } else { &token.project };
        table.row([
            token.id.as_str().into(),
            token.name.as_str().into(),
            words::role(token.role()).into(),
            project.into(),
            time::moment(token.created_ms).into(),
            used.into(),
            ends.into(),
        ]);
    }
    Ok(cx.printer.table(&table)?)
}
