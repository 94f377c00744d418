//! `kiln version`.

use serde_json::json;

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
};

pub(crate) fn run(cx: &Cx<'_>) -> Result {
    let version = env!("CARGO_PKG_VERSION");
    let (oldest, newest) = (kiln_proto::PROTOCOL_MIN, kiln_proto::PROTOCOL_MAX);
    if cx.printer.is_json() {
        let protocol = json!({ "min": oldest, "max": newest });
        cx.printer.json(&json!({ "version": version, "protocol": protocol }))?;
    } else {
        cx.printer.line(format!("kiln {version} (agent protocol {oldest} to {newest})"))?;
    }
    Ok(ExitStatus::Succeeded)
}
