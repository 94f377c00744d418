//! `[storage]`: where the bytes of logs and artifacts are kept.

use std::path::{Component, PathBuf};

use serde::{Deserialize, Serialize};

use super::Invalid;

const URL: &str = "storage.url";
const FORMS: &str = "must be empty (logs and artifacts are in the data folder, for one server), or file:///PATH or \
     s3://BUCKET/PREFIX (for any number of servers of one database)";

/// Where logs and artifacts are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// `file:///PATH` or `s3://BUCKET/PREFIX`, usable by several servers at once. Empty: in the data folder, for one
    /// server. What reaches a bucket (endpoint, region, credentials) is read from `AWS_…` variables.
    pub url: String,
}

/// What a storage URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// Logs as files and artifacts under the data folder of the one server.
    DataDir,
    /// A folder that every server reaches under this path.
    Folder(PathBuf),
    /// A bucket of an S3-compatible store. The prefix has no slash at either end; it may be empty.
    Bucket { bucket: String, prefix: String },
}

impl Storage {
    pub(super) fn check(&self) -> Vec<Invalid> {
        self.location().err().into_iter().collect()
    }

    /// The location that the URL names.
    pub fn location(&self) -> Result<Location, Invalid> {
        if self.url.is_empty() {
            return Ok(Location::DataDir);
        }
        if let Some(path) = self.url.strip_prefix("file://") {
            return folder(path);
        }
        match self.url.strip_prefix("s3://") {
            Some(rest) => bucket(rest),
            None => Err(Invalid::new(URL, FORMS)),
        }
    }
}

fn folder(path: &str) -> Result<Location, Invalid> {
    let path = PathBuf::from(path);
    let plain =
        path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && plain && path.parent().is_some() {
        return Ok(Location::Folder(path));
    }
    Err(Invalid::new(URL, "a folder is named as file:///PATH, with a whole path without '..'"))
}

fn bucket(rest: &str) -> Result<Location, Invalid> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') {
        let message =
            "holds no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead";
        return Err(Invalid::new(URL, message));
    }
    let fine =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = bucket.as_bytes();
    if !(3..=63).contains(&bytes.len())
        || !bytes.iter().copied().all(fine)
        || !ends(bytes.first())
        || !ends(bytes.last())
    {
        let message = "a bucket's name has 3 to 63 of a-z, 0-9, '.' and '-', and begins and ends with a letter or digit";
        return Err(Invalid::new(URL, message));
    }
    let prefix = prefix.trim_end_matches('/');
    let name = |part: &str| {
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(fine)
    };
    if !prefix.is_empty() && !prefix.split('/').all(name) {
        let message = "the parts of a prefix are of A-Z, a-z, 0-9, '.', '_' and '-', and none is empty, '.' or '..'";
        return Err(Invalid::new(URL, message));
    }
    Ok(Location::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(url: &str) -> Result<Location, String> {
        let said = Storage { url: url.to_owned() }.location();
        said.map_err(|invalid| {
            assert_eq!(invalid.field, "storage.url");
            invalid.message
        })
    }

    #[test]
    fn a_url_names_a_folder_or_a_bucket() {
        let bucket = |bucket: &str, prefix: &str| {
            Ok(Location::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
        };
        assert_eq!(location(""), Ok(Location::DataDir));
        assert_eq!(location("file:///srv/kiln"), Ok(Location::Folder("/srv/kiln".into())));
        assert_eq!(location("s3://builds"), bucket("builds", ""));
        assert_eq!(location("s3://builds/"), bucket("builds", ""));
        assert_eq!(location("s3://my.builds-1/a/b_c/"), bucket("my.builds-1", "a/b_c"));
    }

    #[test]
    fn anything_else_is_refused_with_the_way_out() {
        for url in ["/srv", "gs://b", "http://h/b", "s3:b", "file:/x"] {
            assert!(location(url).unwrap_err().contains("s3://BUCKET/PREFIX"), "{url}");
        }
        for url in ["file://srv", "file:///", "file:///a/../b", "file://host/a"] {
            assert!(location(url).unwrap_err().contains("whole path"), "{url}");
        }
        for url in ["s3://", "s3://ab", "s3://UPPER", "s3://a_b", "s3://-ab", "s3://b:9/x"] {
            assert!(location(url).unwrap_err().contains("3 to 63"), "{url}");
        }
        for url in ["s3://abc//x", "s3://abc/a//b", "s3://abc/../x", "s3://abc/x?y=z"] {
            assert!(location(url).unwrap_err().contains("parts of a prefix"), "{url}");
        }
        assert!(location("s3://key:secret@bucket/x").unwrap_err().contains("no credentials"));
    }
}
