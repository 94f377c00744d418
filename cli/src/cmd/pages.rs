//! Lists that the server gives in pages: how much of them is asked for, and how they are shown.

use serde_json::{Value, json};

use crate::{
    cmd::{Cx, Result},
    table::Table,
};

/// The server's limit of a page.
const PAGE: usize = 500;

#[derive(Debug, clap::Args)]
pub(crate) struct Extent {
    /// How many at most
    #[arg(long, default_value_t = 20, value_name = "N", conflicts_with = "all", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// As many as there are
    #[arg(long)]
    all: bool,
}

/// What was read of a list.
#[derive(Debug)]
pub(crate) struct Listed<T> {
    pub(crate) rows: Vec<T>,
    more: bool,
}

impl Extent {
    /// Reads page after page. `page` is told how many rows are wanted; it returns them, and whether there are more.
    pub(crate) async fn read<T>(
        &self,
        mut page: impl AsyncFnMut(i32) -> Result<(Vec<T>, bool)>,
    ) -> Result<Listed<T>> {
        let limit = if self.all { usize::MAX } else { self.limit as usize };
        let mut listed = Listed { rows: vec![], more: true };
        while listed.more && listed.rows.len() < limit {
            let wanted = (limit - listed.rows.len()).min(PAGE);
            let (rows, more) = page(i32::try_from(wanted).unwrap_or(i32::MAX)).await?;
            listed.rows.extend(rows);
            listed.more = more;
        }
        Ok(listed)
    }
}

impl<T> Listed<T> {
    /// Prints the rows: under `name` as JSON, else as `table`, or `nothing` where there are none.
    pub(crate) fn show(
        &self,
        cx: &Cx<'_>,
        name: &str,
        json: impl Fn(&T) -> Value,
        table: &Table,
        nothing: &str,
    ) -> Result<()> {
        if cx.printer.is_json() {
            let rows: Value = self.rows.iter().map(json).collect();
            return Ok(cx.printer.json(&json!({ name: rows, "more": self.more }))?);
        }
        if table.is_empty() {
            cx.printer.note(nothing);
            return Ok(());
        }
        cx.printer.table(table)?;
        if self.more {
            cx.printer.note("there are more: use --limit or --all");
        }
        Ok(())
    }
}
