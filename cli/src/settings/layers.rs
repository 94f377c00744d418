//! Where values come from, each as a list of leaves.

use std::{collections::BTreeMap, str::FromStr};

use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::{Config, Leaf, Source};

const NUMBER: &str = "must be a whole number";

type Wrong = Vec<(String, String)>;

/// Variables that may be ours. One that is empty is not set.
pub(super) fn variables() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| name.starts_with("KILN_") && !value.is_empty())
        .collect()
}

pub(super) fn leaf(path: &str, value: Value, source: Source) -> Leaf {
    Leaf { path: path.split('.').map(str::to_owned).collect(), value, source }
}

/// The values of a file, or what keeps it from being read, each with its line.
pub(super) fn file(name: &str, text: &str) -> Result<Vec<Leaf>, Wrong> {
    let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let (spans, errors) = DeTable::parse_recoverable(text);
    let values = Table::from_str(text);
    if !errors.is_empty() {
        let place = |error: &toml::de::Error| {
            error.span().map_or_else(|| name.to_owned(), |at| format!("{name}:{}", line(at.start)))
        };
        return Err(errors.iter().map(|e| (place(e), e.message().trim().to_owned())).collect());
    }
    let values = values.map_err(|error| vec![(name.to_owned(), error.message().to_owned())])?;
    let mut found = vec![];
    let at = |at: usize| Source::File(name.to_owned(), line(at));
    walk(&mut vec![], values, spans.get_ref(), &at, &mut found);
    Ok(found)
}

fn walk(
    path: &mut Vec<String>,
    values: Table,
    spans: &DeTable<'_>,
    source: &impl Fn(usize) -> Source,
    found: &mut Vec<Leaf>,
) {
    for (key, value) in values {
        let Some((place, inner)) = spans.iter().find(|(name, _)| name.get_ref() == &key) else {
            continue;
        };
        path.push(key);
        match (value, inner.get_ref()) {
            (Value::Table(values), DeValue::Table(spans)) if !values.is_empty() => {
                walk(path, values, spans, source, found);
            }
            (value, _) => {
                let source = source(place.span().start);
                found.push(Leaf { path: path.clone(), value, source });
            }
        }
        path.pop();
    }
}

/// The leaves below a section, by their names in it; with an empty one, all that are left.
pub(super) fn take(leaves: &mut Vec<Leaf>, section: &str) -> Vec<Leaf> {
    let Some(section) = section.strip_suffix('.') else { return std::mem::take(leaves) };
    let (mut taken, left): (Vec<_>, Vec<_>) = std::mem::take(leaves)
        .into_iter()
        .partition(|leaf| leaf.path.len() > 1 && leaf.path[0] == section);
    *leaves = left;
    for leaf in &mut taken {
        leaf.path.remove(0);
    }
    taken
}

/// The fields that are set in the environment. Text is taken as it is; anything else is written as in a file.
pub(super) fn of_variables<T: Config>(
    variables: &BTreeMap<String, String>,
    prefix: &str,
) -> Vec<Result<Leaf, (String, String)>> {
    let mut found = vec![];
    for (path, default) in fields(&T::default()) {
        let name = variable(prefix, &path);
        let Some(text) = variables.get(&name) else { continue };
        let value = if default.is_string() || default.is_null() {
            Ok(Value::String(text.clone()))
        } else {
            text.parse::<Value>()
        };
        let source = Source::Variable(name);
        match value {
            Ok(Value::Table(table)) => found.extend(table.into_iter().map(|(key, value)| {
                let path = path.split('.').map(str::to_owned).chain([key]).collect();
                Ok(Leaf { path, value, source: source.clone() })
            })),
            Ok(value) => found.push(Ok(leaf(&path, value, source))),
            Err(_) => found.push(Err((format!("{path} ({source})"), must_be(&default)))),
        }
    }
    found
}

/// The variable of a field.
pub(super) fn variable(prefix: &str, path: &str) -> String {
    format!("{prefix}{}", path.to_uppercase().replace('.', "_"))
}

fn must_be(default: &serde_json::Value) -> String {
    match default {
        serde_json::Value::Bool(_) => "must be true or false",
        serde_json::Value::Number(_) => NUMBER,
        serde_json::Value::Array(_) => "must be a list, as [\"a\", \"b\"]",
        _ => "must be a table, as { key = \"value\" }",
    }
    .to_owned()
}

/// All fields of a configuration with their values, by full name. One that has no value is null.
pub(super) fn fields<T: Config>(config: &T) -> Vec<(String, serde_json::Value)> {
    fn flatten(path: &str, value: serde_json::Value, found: &mut Vec<(String, serde_json::Value)>) {
        match value {
            serde_json::Value::Object(fields) if path.is_empty() || !fields.is_empty() => {
                for (key, value) in fields {
                    let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                    flatten(&path, value, found);
                }
            }
            value => found.push((path.to_owned(), value)),
        }
    }
    let mut found = vec![];
    // A struct of plain fields has no way to fail.
    flatten("", serde_json::to_value(config).unwrap_or_default(), &mut found);
    found
}

/// Whether a configuration takes this value, or why not. What is said repeats no value: it may be a secret.
pub(super) fn alone<T: Config>(leaf: &Leaf) -> Result<(), String> {
    let mut table = Table::new();
    put(&mut table, &leaf.path, leaf.value.clone());
    let Err(error) = table.try_into::<T>() else { return Ok(()) };
    let said = error.message().trim();
    let (what, expected) = said.split_once(", expected ").unwrap_or((said, ""));
    Err(match expected {
        _ if what.starts_with("unknown field") => format!("is not known; expected {expected}"),
        "u8" | "u16" | "u32" | "u64" | "i32" | "i64" | "usize" => NUMBER.to_owned(),
        "" if said.contains("socket address") => {
            "must be an address with a port, as 127.0.0.1:7420".to_owned()
        }
        "" => said.to_owned(),
        expected => format!("must be {expected}"),
    })
}

pub(super) fn put(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [key, rest @ ..] => {
            let inner = table.entry(key.as_str()).or_insert_with(|| Value::Table(Table::new()));
            if !inner.is_table() {
                *inner = Value::Table(Table::new());
            }
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}
