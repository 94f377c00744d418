//! `kiln audit`: what was done by whom, newest first.

use kiln_sdk::v1::{AuditRecord, ListAuditRequest};

use crate::{
    cmd::{Cx, Result, pages::Extent},
    exit::ExitStatus,
    json,
    table::Table,
    time, units,
};

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
    #[command(flatten)]
    extent: Extent,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let mut request = ListAuditRequest {
            actor: self.actor.unwrap_or_default(),
            action: self.action.unwrap_or_default(),
            object: self.object.unwrap_or_default(),
            from_ms: self.since.map_or(0, |since| time::now() - since),
            ..Default::default()
        };
        let listed = self
            .extent
            .read(async |wanted| {
                request.page_size = wanted;
                let page = client.list_audit(request.clone()).await?;
                let more = page.next_before > 0;
                request.before = page.next_before;
                Ok((page.records, more))
            })
            .await?;
        listed.show(
            cx,
            "records",
            json::audit_record,
            &table(&listed.rows),
            "nothing was recorded",
        )?;
        Ok(ExitStatus::Succeeded)
    }
}

fn table(records: &[AuditRecord]) -> Table {
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
    table
}
