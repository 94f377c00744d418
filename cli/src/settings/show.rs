//! The configuration as it is in effect, as a file with where each value comes from. Nothing secret is in it.

use serde_json::{Map, Value, json};

use super::{Config, Part, Source, layers};
use crate::{cmd::Cx, cmd::Result};

/// Stands for what is not shown.
const HIDDEN: &str = "…";

/// One field as it is shown.
#[derive(Debug)]
pub(crate) struct Field {
    /// Its full name.
    name: String,
    value: Value,
    source: Source,
}

impl<T: Config> Part<T> {
    pub(crate) fn shown(&self) -> Vec<Field> {
        let field = |(name, value): (String, Value)| Field {
            source: self.sources.get(&name).cloned().unwrap_or(Source::Default),
            name: format!("{}{name}", self.section),
            value: redacted(value),
        };
        layers::fields(&self.config).into_iter().map(field).collect()
    }
}

/// Prints what `--check-config` asks for.
pub(crate) fn show(cx: &Cx<'_>, parts: Vec<Vec<Field>>) -> Result<()> {
    let fields: Vec<_> = parts.into_iter().flatten().collect();
    if cx.printer.is_json() {
        let field = |Field { name, value, source }| {
            (name, json!({ "value": value, "source": source.to_string() }))
        };
        let fields: Map<String, Value> = fields.into_iter().map(field).collect();
        return Ok(cx.printer.json(&Value::Object(fields))?);
    }
    Ok(cx.printer.bytes(text(fields).as_bytes())?)
}

fn section(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(section, _)| section)
}

pub(super) fn text(mut fields: Vec<Field>) -> String {
    // A file begins with what stands in no section.
    fields.sort_by(|a, b| section(&a.name).cmp(section(&b.name)));
    let mut lines = vec![];
    let mut current = "";
    for Field { name, value, source } in &fields {
        if section(name) != current {
            current = section(name);
            lines.push(format!("\n[{current}]"));
        }
        let key = name.rsplit('.').next().unwrap_or(name);
        let mut line = match toml::Value::try_from(value) {
            Ok(value) => format!("{key} = {value}"),
            Err(_) => format!("# {key} is not set"),
        };
        if *source != Source::Default {
            line = format!("{line} # {source}");
        }
        lines.push(line);
    }
    lines.join("\n") + "\n"
}

fn redacted(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(without_secrets(&text)),
        Value::Array(values) => values.into_iter().map(redacted).collect(),
        Value::Object(fields) => fields.into_iter().map(|(k, v)| (k, redacted(v))).collect(),
        plain => plain,
    }
}

/// A URL without its password, be it before the host or among the parameters.
fn without_secrets(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (login, place) = rest.rsplit_once('@').map_or(("", rest), |(login, place)| (login, place));
    let login = match login.split_once(':') {
        Some((user, _)) => format!("{user}:{HIDDEN}@"),
        None if login.is_empty() => String::new(),
        None => format!("{login}@"),
    };
    let place = match place.split_once('?') {
        Some((place, query)) => {
            let parameters: Vec<_> = query.split('&').map(parameter).collect();
            format!("{place}?{}", parameters.join("&"))
        }
        None => place.to_owned(),
    };
    format!("{scheme}://{login}{place}")
}

fn parameter(text: &str) -> String {
    match text.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}={HIDDEN}"),
        _ => text.to_owned(),
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    ["pass", "secret", "token", "key"].iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        for (url, shown) in [
            ("postgres://kiln:se@cret@db:5432/kiln", "postgres://kiln:…@db:5432/kiln"),
            ("postgres://db/k?user=a&password=secret", "postgres://db/k?user=a&password=…"),
            ("https://token:x@collector/", "https://token:…@collector/"),
            ("postgres://kiln@db/kiln?sslmode=require", "postgres://kiln@db/kiln?sslmode=require"),
            ("sqlite:/a@b:c", "sqlite:/a@b:c"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }
}
