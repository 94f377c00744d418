//! The configuration of a role, in layers: what is built in < TOML file < environment < flags.
//!
//! Nothing is listed here: a field of a configuration struct is a key of its file, and its path in capitals a variable
//! of the environment (`limits.streams`: `KILN_LIMITS_STREAMS`). Each value is read alone first, so that everything
//! that is wrong is said at once, with where it stands.

mod layers;
mod show;

use std::{
    collections::BTreeMap,
    fmt::{self, Debug},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use crate::{cmd::Result, failure::Failure};

pub(crate) use show::show;

/// A configuration that can be set so. It and all its sections have defaults and refuse unknown keys.
pub(crate) trait Config: Debug + Clone + Default + Serialize + DeserializeOwned {
    /// What can't be used, though each value alone could: the field, and what to do.
    fn refused(&self) -> Vec<(&'static str, String)>;

    /// This one, in effect, with what can be taken over of a new one.
    #[must_use]
    fn reloaded(&self, new: &Self) -> Self;
}

impl Config for kiln_server::Config {
    fn refused(&self) -> Vec<(&'static str, String)> {
        let found = self.check().err().map_or_else(Vec::new, |error| error.0);
        found.into_iter().map(|invalid| (invalid.field, invalid.message)).collect()
    }

    fn reloaded(&self, new: &Self) -> Self {
        Self::reloaded(self, new)
    }
}

impl Config for kiln_agent::Config {
    fn refused(&self) -> Vec<(&'static str, String)> {
        self.check()
    }

    /// Sessions and jobs rely on all of it.
    fn reloaded(&self, _: &Self) -> Self {
        self.clone()
    }
}

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Default,
    /// The name of the file and the line.
    File(String, usize),
    Variable(String),
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(name, line) => write!(f, "{name}:{line}"),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One value of one layer.
#[derive(Debug, Clone)]
struct Leaf {
    /// Its keys from the root, as `["limits", "streams"]`.
    path: Vec<String>,
    value: Value,
    source: Source,
}

impl Leaf {
    fn name(&self) -> String {
        self.path.join(".")
    }
}

/// The part of a configuration that one component reads.
#[derive(Debug, Clone)]
pub(crate) struct Part<T> {
    pub(crate) config: T,
    /// Where what is not built in stands, by full name.
    sources: BTreeMap<String, Source>,
    /// The section of the file that it is in, with a dot at its end; empty: all of it.
    section: &'static str,
}

impl<T> Part<T> {
    /// What of these fields is set somewhere.
    fn set<'a>(&self, fields: &'a [&'static str]) -> impl Iterator<Item = (&'a str, &Source)> {
        let source = |field: &&'a str| Some((*field, self.sources.get(*field)?));
        fields.iter().copied().filter_map(move |field| source(&field))
    }
}

impl<T: Config> Part<T> {
    /// Takes over what can be while the role runs, and says what else is different.
    pub(crate) fn reload(&mut self, new: &Self) -> Result<Vec<String>> {
        let config = self.config.reloaded(&new.config);
        let named = |(field, why): (&str, String)| (format!("{}{field}", self.section), why);
        let wrong: Vec<_> = config.refused().into_iter().map(named).collect();
        if !wrong.is_empty() {
            return Err(refused(wrong));
        }
        let wanted = layers::fields(&new.config);
        let kept = wanted.into_iter().filter({
            let now: BTreeMap<_, _> = layers::fields(&config).into_iter().collect();
            move |(name, value)| now.get(name) != Some(value)
        });
        let kept = kept.map(|(name, _)| format!("{}{name}", self.section)).collect();
        self.config = config;
        Ok(kept)
    }
}

fn refused(wrong: Vec<(String, String)>) -> Failure {
    let mut failure = Failure::usage("the configuration can't be used");
    failure.fields = wrong;
    failure
}

/// All layers, and what was found to be wrong.
#[derive(Debug)]
pub(crate) struct Settings {
    file: Vec<Leaf>,
    variables: BTreeMap<String, String>,
    flags: Vec<Leaf>,
    wrong: Vec<(String, String)>,
}

impl Settings {
    /// Reads the file, if there is one, and takes the environment as it is now.
    pub(crate) fn read(file: Option<&Path>, flags: Flags) -> Result<Self> {
        let mut settings =
            Self { file: vec![], variables: layers::variables(), flags: flags.0, wrong: vec![] };
        if let Some(path) = file {
            let text =
                std::fs::read_to_string(path).map_err(|e| Failure::file("read", path, &e))?;
            match layers::file(&path.display().to_string(), &text) {
                Ok(leaves) => settings.file = leaves,
                Err(wrong) => settings.wrong = wrong,
            }
        }
        Ok(settings)
    }

    /// The configuration of one component, built on `base`: its file section (empty: what no other part took) and its
    /// variables, which begin with `prefix`.
    pub(crate) fn part<T: Config>(
        &mut self,
        section: &'static str,
        prefix: &str,
        base: &[(&str, Value)],
    ) -> Part<T> {
        let mut leaves: Vec<Leaf> = base
            .iter()
            .map(|(path, value)| layers::leaf(path, value.clone(), Source::Default))
            .collect();
        leaves.extend(layers::take(&mut self.file, section));
        for found in layers::of_variables::<T>(&self.variables, prefix) {
            match found {
                Ok(leaf) => leaves.push(leaf),
                Err((field, why)) => self.wrong.push((format!("{section}{field}"), why)),
            }
        }
        leaves.extend(layers::take(&mut self.flags, section));
        let mut table = Table::new();
        let mut sources = BTreeMap::new();
        for leaf in leaves {
            let name = leaf.name();
            match layers::alone::<T>(&leaf) {
                Ok(()) => {
                    sources.insert(name, leaf.source.clone());
                    layers::put(&mut table, &leaf.path, leaf.value);
                }
                Err(why) => self.wrong.push((format!("{section}{name} ({})", leaf.source), why)),
            }
        }
        let config = table.try_into().unwrap_or_else(|error: toml::de::Error| {
            // Only values that contradict each other come here.
            self.wrong.push((section.to_owned(), error.message().to_owned()));
            T::default()
        });
        for (field, why) in config.refused() {
            let source = sources.get(field).unwrap_or(&Source::Default);
            self.wrong.push((format!("{section}{field} ({source})"), why));
        }
        sources.retain(|_, source| *source != Source::Default);
        Part { config, sources, section }
    }

    /// Refuses what is set although something else decides it.
    pub(crate) fn reserve<T>(&mut self, part: &Part<T>, fields: &[&'static str], why: &str) {
        let section = part.section;
        let named = |(field, source)| (format!("{section}{field} ({source})"), why.to_owned());
        self.wrong.extend(part.set(fields).map(named));
    }

    /// Everything that is wrong, at once.
    pub(crate) fn finish(self) -> Result<()> {
        if self.wrong.is_empty() { Ok(()) } else { Err(refused(self.wrong)) }
    }
}

/// What the flags of a command say.
#[derive(Debug, Default)]
pub(crate) struct Flags(Vec<Leaf>);

impl Flags {
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// A flag that may be there; `path` is the field's full name.
    pub(crate) fn set(
        mut self,
        path: &str,
        flag: &'static str,
        value: Option<impl Into<Value>>,
    ) -> Self {
        let value = value.map(|value| layers::leaf(path, value.into(), Source::Flag(flag)));
        self.0.extend(value);
        self
    }

    /// Entries of a table.
    pub(crate) fn entries(
        mut self,
        field: &str,
        flag: &'static str,
        entries: Vec<(String, String)>,
    ) -> Self {
        self.0.extend(entries.into_iter().map(|(key, value)| Leaf {
            path: field.split('.').map(str::to_owned).chain([key]).collect(),
            value: value.into(),
            source: Source::Flag(flag),
        }));
        self
    }

    /// As `set`, for a file or folder.
    pub(crate) fn path(self, field: &str, flag: &'static str, value: Option<&Path>) -> Self {
        self.set(field, flag, value.map(path))
    }
}

/// A path as a value. One that is no text can't stand in a file either.
pub(crate) fn path(path: &Path) -> Value {
    path.to_string_lossy().into_owned().into()
}

#[cfg(test)]
mod tests;
