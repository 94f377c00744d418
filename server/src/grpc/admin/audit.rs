//! The audit log on the wire.

use kiln_core::spec::Violation;
use kiln_proto::{convert, v1};
use tonic::Status;

use crate::{
    app::views::{AuditFilter, AuditRow},
    grpc::{page, status},
};

/// Bytes of a filter's text.
const MAX_TEXT: usize = 200;

/// The filter, the number to begin below, and the rows of a page.
pub(super) fn read(
    request: v1::ListAuditRequest,
) -> Result<(AuditFilter, Option<i64>, u32), Status> {
    let mut found = vec![];
    for (field, value) in
        [("from_ms", request.from_ms), ("until_ms", request.until_ms), ("before", request.before)]
    {
        found.extend(convert::unsigned(field, value).err());
    }
    for (field, text) in [("actor", &request.actor), ("object", &request.object)] {
        if text.len() > MAX_TEXT {
            found.push(Violation::new(field, format!("at most {MAX_TEXT} bytes")));
        }
    }
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte == b'.';
    if request.action.len() > MAX_TEXT || !request.action.bytes().all(letters) {
        let message = "must be an action as token.create, or a kind of object as token";
        found.push(Violation::new("action", message));
    }
    let limit = page::size("page_size", request.page_size);
    match limit {
        Ok(limit) if found.is_empty() => {
            let when = |time: i64| Some(time).filter(|time| *time > 0);
            let filter = AuditFilter {
                actor: request.actor,
                action: request.action,
                object: request.object,
                from: when(request.from_ms),
                until: when(request.until_ms),
            };
            Ok((filter, when(request.before), limit))
        }
        limit => {
            found.extend(limit.err());
            Err(status::invalid(&found))
        }
    }
}

pub(super) fn record(row: AuditRow) -> v1::AuditRecord {
    v1::AuditRecord {
        number: row.number,
        time_ms: row.at,
        actor_kind: row.actor_kind.as_str().to_owned(),
        actor: row.actor,
        actor_name: row.actor_name,
        peer: row.peer.unwrap_or_default(),
        action: row.act.action.into_owned(),
        object: row.act.object,
        object_name: row.act.object_name,
        changed: row.act.changed,
        detail: row.act.detail,
    }
}
