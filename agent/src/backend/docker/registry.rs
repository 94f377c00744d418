//! Credentials for registries, from a file as `docker login` writes it.

use std::{collections::BTreeMap, io, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bollard::auth::DockerCredentials;
use serde::Deserialize;

/// The registry of names without one, and its name in files of `docker login`.
const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_KEY: &str = "https://index.docker.io/v1/";

#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Login>,
    /// Programs that keep credentials: for all registries, and for some.
    #[serde(default, rename = "credsStore")]
    store: String,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

impl File {
    /// The program that has the credentials for a registry, if the file has not got them itself.
    fn helper(&self, registry: &str, found: Option<&Login>) -> Option<&str> {
        if found.is_some_and(|login| !login.is_empty()) {
            return None;
        }
        let store = Some(&self.store).filter(|store| found.is_some() && !store.is_empty());
        self.helpers.get(registry).or(store).map(String::as_str)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Login {
    #[serde(rename = "auth")]
    pair: String,
    username: String,
    password: String,
    identitytoken: Option<String>,
}

/// The credentials for an image's registry, where the file has some.
pub(super) fn credentials(file: &Path, image: &str) -> io::Result<Option<DockerCredentials>> {
    let named = |error: &dyn std::fmt::Display| {
        io::Error::other(format!("registry credentials in {}: {error}", file.display()))
    };
    let text = std::fs::read(file).map_err(|error| named(&error))?;
    // What serde says of a wrong file could hold a piece of it.
    let parsed: File = serde_json::from_slice(&text).map_err(|_| named(&"not valid JSON"))?;
    let registry = registry(image);
    let fits = |key: &str| {
        let host = key.trim_start_matches("https://").trim_start_matches("http://");
        host.split('/').next() == Some(registry)
            || (registry == DEFAULT_REGISTRY && key == DEFAULT_KEY)
    };
    let found = parsed.auths.iter().find(|(key, _)| fits(key));
    if let Some(helper) = parsed.helper(registry, found.map(|(_, login)| login)) {
        return Err(named(&format!(
            "those for {registry} are kept by the program docker-credential-{helper}, which agents do not run; \
             write them into a file of its own by `docker --config DIR login {registry}`, without credsStore and credHelpers"
        )));
    }
    let Some((key, login)) = found else { return Ok(None) };
    let (username, password) =
        login.read().ok_or_else(|| named(&format!("{key}: bad \"auth\"")))?;
    Ok(Some(DockerCredentials {
        username: Some(username),
        password: Some(password),
        identitytoken: login.identitytoken.clone(),
        serveraddress: Some(key.clone()),
        ..DockerCredentials::default()
    }))
}

impl Login {
    /// `docker login` leaves such an entry for what a helper keeps.
    fn is_empty(&self) -> bool {
        self.pair.is_empty() && self.username.is_empty() && self.identitytoken.is_none()
    }

    fn read(&self) -> Option<(String, String)> {
        if self.pair.is_empty() {
            return Some((self.username.clone(), self.password.clone()));
        }
        let text = String::from_utf8(STANDARD.decode(&self.pair).ok()?).ok()?;
        let (username, password) = text.split_once(':')?;
        Some((username.to_owned(), password.to_owned()))
    }
}

/// The host of an image's name.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => DEFAULT_REGISTRY,
    }
}

/// The name with a tag: without one the engine fetches all of them.
pub(super) fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_the_engine_reads_them() {
        assert_eq!(registry("debian"), "docker.io");
        assert_eq!(registry("library/debian:12"), "docker.io");
        assert_eq!(registry("localhost/x"), "localhost");
        assert_eq!(registry("127.0.0.1:5000/a/b:1"), "127.0.0.1:5000");
        assert_eq!(with_tag("127.0.0.1:5000/a"), "127.0.0.1:5000/a:latest");
        assert_eq!(with_tag("a:1"), "a:1");
        assert_eq!(with_tag("a@sha256:0"), "a@sha256:0");
    }

    #[test]
    fn the_right_credentials_are_found_and_none_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let auth = STANDARD.encode("user:pass:word");
        let text = format!(
            r#"{{"auths":{{"127.0.0.1:5000":{{"auth":"{auth}"}},
            "https://index.docker.io/v1/":{{"username":"hub","password":"x"}}}},"credsStore":"y"}}"#
        );
        std::fs::write(&file, text).unwrap();
        let found = |image| credentials(&file, image).unwrap();
        assert_eq!(found("127.0.0.1:5000/a").unwrap().password.as_deref(), Some("pass:word"));
        assert_eq!(found("debian").unwrap().username.as_deref(), Some("hub"));
        assert!(found("example.org/a").is_none());
        let kept = r#"{"auths":{"a.b":{}},"credsStore":"pass","credHelpers":{"c.d":"cloud"}}"#;
        std::fs::write(&file, kept).unwrap();
        for (image, program) in
            [("a.b/x", "docker-credential-pass"), ("c.d/x", "docker-credential-cloud")]
        {
            let error = credentials(&file, image).unwrap_err().to_string();
            assert!(
                error.contains(program) && error.contains("docker --config DIR login"),
                "{error}"
            );
        }
        assert!(credentials(&file, "example.org/a").unwrap().is_none(), "nobody logged in there");
        std::fs::write(&file, r#"{"auths":{"a.b":{"auth":"secret secret"}}}"#).unwrap();
        let error = credentials(&file, "a.b/c").unwrap_err().to_string();
        assert!(error.contains("a.b") && !error.contains("secret"), "{error}");
    }
}
