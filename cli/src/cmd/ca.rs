//! `kiln ca`: the authority that certifies servers and agents.

use clap::Subcommand;
use kiln_sdk::v1::{Authority, ListAuthoritiesRequest, RotateAuthorityRequest};
use serde_json::{Value, json};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    failure::Failure,
    table::Table,
    time, units,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show whom clients can trust: the fingerprints for --ca-fingerprint
    Show,
    /// Print the certificates for --ca-file, in PEM
    Export,
    /// Make a new authority; those before are trusted for a while, so that clients and agents can change over
    Rotate {
        /// How long those before are trusted, at most 366d
        #[arg(long, default_value = "90d", value_name = "TIME", value_parser = units::duration)]
        grace: i64,
        /// They are not trusted any more: someone has a key who should not
        #[arg(long, conflicts_with = "grace")]
        now: bool,
    },
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        if let Command::Rotate { grace, now } = self.command {
            let request = RotateAuthorityRequest { grace_ms: if now { 0 } else { grace } };
            show(cx, &client.rotate_authority(request).await?.authorities)?;
            return Ok(ExitStatus::Succeeded);
        }
        let found = client.list_authorities(ListAuthoritiesRequest {}).await?.authorities;
        if found.is_empty() {
            return Err(Failure::usage("this farm has no authority")
                .hint("start a server with --tls, which makes one"));
        }
        if matches!(self.command, Command::Export) {
            let pem: String = found.iter().map(|one| one.certificate_pem.as_str()).collect();
            cx.printer.bytes(pem.as_bytes())?;
        } else {
            show(cx, &found)?;
        }
        Ok(ExitStatus::Succeeded)
    }
}

fn show(cx: &Cx<'_>, authorities: &[Authority]) -> Result<()> {
    if cx.printer.is_json() {
        let all: Vec<Value> = authorities.iter().map(json).collect();
        return Ok(cx.printer.json(&json!(all))?);
    }
    let mut table = Table::new(&["GENERATION", "FINGERPRINT", "MADE", "TRUSTED UNTIL"]);
    for one in authorities {
        let until = match one.trusted_until_ms {
            0 => "signs now".to_owned(),
            until => time::moment(until),
        };
        let made = time::moment(one.created_ms);
        let cells = [one.generation.to_string(), one.fingerprint.clone(), made, until];
        table.row(cells.map(Into::into));
    }
    Ok(cx.printer.table(&table)?)
}

fn json(one: &Authority) -> Value {
    let until = Some(one.trusted_until_ms).filter(|until| *until > 0);
    json!({
        "generation": one.generation,
        "fingerprint": one.fingerprint,
        "certificate_pem": one.certificate_pem,
        "created_ms": one.created_ms,
        "trusted_until_ms": until,
    })
}
