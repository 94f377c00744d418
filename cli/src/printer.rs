//! The only place that writes to the terminal.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use crate::{
    args::{ColorChoice, Format, Global},
    exit::ExitStatus,
    failure::Failure,
};

/// Where output goes, and how loud.
#[derive(Debug, Clone)]
pub(crate) struct Printer {
    format: Format,
    quiet: bool,
    verbose: u8,
    out_color: bool,
    err_color: bool,
}

/// A colour or weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

impl Style {
    pub(crate) fn paint(self, text: &str, color: bool) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Red => "31",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Cyan => "36",
        };
        if color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

#[expect(clippy::unused_self, reason = "who writes must hold the Printer")]
impl Printer {
    pub(crate) fn new(global: &Global) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = |terminal: bool| match global.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !plain,
        };
        Self {
            format: global.output,
            quiet: global.quiet,
            verbose: global.verbose,
            out_color: color(io::stdout().is_terminal()),
            err_color: color(io::stderr().is_terminal()),
        }
    }

    pub(crate) const fn is_json(&self) -> bool {
        matches!(self.format, Format::Json)
    }

    pub(crate) const fn verbose(&self) -> u8 {
        self.verbose
    }

    /// Whether a picture that moves may be drawn on stderr.
    pub(crate) fn draws(&self) -> bool {
        !self.quiet && !self.is_json() && io::stderr().is_terminal()
    }

    /// Whether stderr takes colours.
    pub(crate) const fn colors_err(&self) -> bool {
        self.err_color
    }

    pub(crate) fn out_paint(&self, style: Style, text: &str) -> String {
        style.paint(text, self.out_color)
    }

    pub(crate) fn err_paint(&self, style: Style, text: &str) -> String {
        style.paint(text, self.err_color)
    }

    /// A line of the result.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> io::Result<()> {
        writeln!(io::stdout(), "{}", text.as_ref())
    }

    /// Bytes of the result, as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// A document of the result.
    pub(crate) fn json(&self, value: &Value) -> io::Result<()> {
        writeln!(io::stdout(), "{value:#}")
    }

    /// One object: a document, or a table of one row.
    pub(crate) fn object(&self, json: &Value, table: &crate::table::Table) -> io::Result<()> {
        if self.is_json() { self.json(json) } else { self.table(table) }
    }

    /// A document of a stream: one a line.
    pub(crate) fn json_line(&self, value: &Value) -> io::Result<()> {
        writeln!(io::stdout(), "{value}")
    }

    pub(crate) fn table(&self, table: &crate::table::Table) -> io::Result<()> {
        let text = table.render(self.out_color);
        io::stdout().write_all(text.as_bytes())
    }

    /// Something that is good to know; not part of the result.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            // Notes are lost together with the terminal they are for.
            let _ = writeln!(io::stderr(), "{}", text.as_ref());
        }
    }

    pub(crate) fn warning(&self, text: &str) {
        self.note(format!("{}: {text}", self.err_paint(Style::Yellow, "warning")));
    }

    /// Says what went wrong; quiet does not silence it.
    pub(crate) fn failure(&self, failure: &Failure) -> ExitStatus {
        if failure.silent {
            return ExitStatus::Succeeded;
        }
        let error = self.err_paint(Style::Red, "error");
        let mut lines = vec![format!("{error}: {}", failure.message)];
        for (field, message) in &failure.fields {
            lines.push(format!("  {}: {message}", self.err_paint(Style::Bold, field)));
        }
        if let Some(hint) = &failure.hint {
            lines.push(format!("{}: {hint}", self.err_paint(Style::Cyan, "hint")));
        }
        // Where stderr is gone there is nobody to tell.
        let _ = writeln!(io::stderr(), "{}", lines.join("\n"));
        failure.status
    }
}
