//! Values of secrets, read from a file or from standard input: never from an argument, which others see.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use kiln_sdk::v1;

use crate::{cmd::Result, failure::Failure};

/// One byte more than the server takes, so that it says what is too large.
const MAX_BYTES: u64 = (64 << 10) + 1;
const STDIN: &str = "-";
const FORMS: &str = "write NAME for a secret of the project, NAME=@FILE, or NAME=- for standard input; a value is never an argument";

/// What `--secret` asks for.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Names of all.
    pub(crate) names: Vec<String>,
    /// Those that come with the build.
    pub(crate) given: Vec<v1::Secret>,
}

/// The value, byte for byte; `-` is standard input.
pub(crate) fn read_value(path: &Path) -> Result<Vec<u8>> {
    let mut value = vec![];
    let read = if path == Path::new(STDIN) {
        io::stdin().take(MAX_BYTES).read_to_end(&mut value)
    } else {
        File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut value))
    };
    read.map_err(|error| Failure::file("read", path, &error))?;
    Ok(value)
}

/// Reads the values of all `--secret`. `stdin`: standard input is free. A wrong one is not repeated, as it may hold a value.
pub(crate) fn read(args: &[String], stdin: bool) -> Result<Asked> {
    let mut free = stdin;
    let mut asked = Asked::default();
    for (index, arg) in args.iter().enumerate() {
        let wrong = |message: &str| {
            Failure::usage(format!("--secret {}: {message}", index + 1)).hint(FORMS)
        };
        let Some((name, from)) = arg.split_once('=') else {
            asked.names.push(arg.clone());
            continue;
        };
        let path = match from.strip_prefix('@') {
            Some(file) if !file.is_empty() => Path::new(file),
            None if from == STDIN => Path::new(STDIN),
            _ => return Err(wrong("a value can't be an argument: others see it")),
        };
        if path == Path::new(STDIN) && !std::mem::replace(&mut free, false) {
            return Err(wrong("standard input is read once, by another argument"));
        }
        asked.names.push(name.to_owned());
        asked.given.push(v1::Secret { name: name.to_owned(), value: read_value(path)? });
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_from_a_file_and_never_from_an_argument() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, b"hush\n\0").unwrap();
        let args = ["A".to_owned(), format!("B=@{}", path.display())];
        let asked = read(&args, false).unwrap();
        assert_eq!(asked.names, ["A", "B"]);
        assert_eq!(asked.given, [v1::Secret { name: "B".into(), value: b"hush\n\0".to_vec() }]);
        for wrong in ["A=hush", "A=", "A=@", "A=-"] {
            let failure = read(&[wrong.to_owned()], false).unwrap_err();
            let shown = format!("{failure:?}");
            assert!(shown.contains("--secret 1") && !shown.contains("hush"), "{shown}");
        }
    }
}
