//! Build files: TOML that people write, read into the request that the server takes. docs/build-file.md describes it.

mod convert;
mod schema;

use std::path::{Path, PathBuf};

use kiln_sdk::v1::BuildSpec;

use crate::{cmd::Result, failure::Failure};

pub(crate) use schema::File;

/// A larger one is a mistake.
const MAX_BYTES: u64 = 4 << 20;
const GUIDE: &str = "see the documentation for every key and its form";

/// What a build file asks for.
#[derive(Debug)]
pub(crate) struct BuildFile {
    pub(crate) spec: BuildSpec,
    /// A folder to pack as the build's source.
    pub(crate) folder: Option<PathBuf>,
}

/// Reads a build file; `-` is standard input.
pub(crate) fn load(path: &Path) -> Result<BuildFile> {
    use std::io::Read;
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_BYTES + 1).read_to_string(&mut text)
    } else {
        let opened = std::fs::File::open(path);
        opened.and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
    };
    read.map_err(|error| {
        Failure::file("read", path, &error)
            .hint("name another file with -f, or - for standard input")
    })?;
    if text.len() as u64 > MAX_BYTES {
        return Err(Failure::usage(format!("{} is larger than 4 MiB", path.display())));
    }
    let mut file = parse(&path.display().to_string(), &text)?;
    // A relative folder means relative to the file, wherever one stands.
    if let (Some(folder), Some(base)) = (&mut file.folder, path.parent()) {
        *folder = base.join(&*folder);
    }
    Ok(file)
}

pub(crate) fn parse(name: &str, text: &str) -> Result<BuildFile> {
    let file: File = toml::from_str(text).map_err(|error| located(name, text, &error))?;
    if file.version != schema::VERSION {
        return Err(Failure::usage(format!("{name}: version {} is not known", file.version))
            .hint("this program reads `version = 1`"));
    }
    convert::build(file).map_err(|(place, message)| {
        Failure::usage(format!("{name}: {place}: {message}")).hint(GUIDE)
    })
}

/// "build.toml:12:5: unknown field …", with what is possible as the hint.
pub(crate) fn located(name: &str, text: &str, error: &toml::de::Error) -> Failure {
    let place = error.span().map_or_else(String::new, |span| {
        let before = &text[..span.start.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!(":{line}:{column}")
    });
    let message = error.message().trim();
    let (message, hint) = match message.split_once(", expected ") {
        Some((message, expected)) => (message, format!("expected {expected}")),
        None => (message, GUIDE.to_owned()),
    };
    Failure::usage(format!("{name}{place}: {message}")).hint(hint.replace('\n', " "))
}

#[cfg(test)]
mod tests;
