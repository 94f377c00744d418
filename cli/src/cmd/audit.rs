//! `kiln audit`: what was done by whom, newest first.

use kiln_sdk::v1::{AuditRecord, ListAuditRequest};
use serde_json::{Value, json};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    json,
    table::Table,
    time, units,
};

/// The server's limit of a page.
const PAGE: usize = 500;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only by this token or agent, by name or id
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Only this action, as token.create, or all of a kind, as token
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only on this object, by name or id
    #[arg(long, value_name = "NAME")]
    object: Option<String>,
    /// Only within this time, as 24h
    #[arg(long, value_parser = units::duration, value_name = "TIME")]
    since: Option<i64>,
    /// How many at most
    #[arg(long, default_value_t = 50, value_name = "N", conflicts_with = "all", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// As many as there are
    #[arg(long)]
    all: bool,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let limit = if self.all { usize::MAX } else { self.limit as usize };
        let mut request = ListAuditRequest {
            actor: self.actor.unwrap_or_default(),
            action: self.action.unwrap_or_default(),
            object: self.object.unwrap_or_default(),
            from_ms: self.since.map_or(0, |since| time::now() - since),
            ..Default::default()
        };
        let mut records: Vec<AuditRecord> = vec![];
        let mut more = true;
        while more && records.len() < limit {
            let wanted = (limit - records.len()).min(PAGE);
            request.page_size = i32::try_from(wanted).unwrap_or(i32::MAX);
            let page = client.list_audit(request.clone()).await?;
            records.extend(page.records);
            more = page.next_before > 0;
            request.before = page.next_before;
        }
        show(cx, &records, more)?;
        Ok(ExitStatus::Succeeded)
    }
}

fn show(cx: &Cx<'_>, records: &[AuditRecord], more: bool) -> Result<()> {
    if cx.printer.is_json() {
        let records: Value = records.iter().map(json::audit_record).collect();
        return Ok(cx.printer.json(&json!({ "records": records, "more": more }))?);
    }
    let mut table = Table::new(&["NUMBER", "TIME", "WHO", "FROM", "ACTION", "OBJECT", "DETAIL"]);
    for record in records {
        let named =
            if record.object_name.is_empty() { &record.object } else { &record.object_name };
        let nothing = if record.changed { "" } else { "nothing changed; " };
        table.row([
            record.number.to_string().into(),
            time::moment(record.time_ms).into(),
            record.actor_name.as_str().into(),
            record.peer.as_str().into(),
            record.action.as_str().into(),
            named.as_str().into(),
            format!("{nothing}{}", record.detail).into(),
        ]);
    }
    if table.is_empty() {
        cx.printer.note("nothing was recorded");
        return Ok(());
    }
    cx.printer.table(&table)?;
    if more {
        cx.printer.note("there are more: use --limit or --all");
    }
    Ok(())
}
