//! `[tls]`: whether connections are encrypted, and with which certificate.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::Invalid;

const DAY: u64 = 24 * 3_600_000;
/// Longer is as good as for ever.
const MOST_OF_AGENT: u64 = 2 * 365 * DAY;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Connections are encrypted: without `cert_file`, by a certificate of the authority that the servers of a database
    /// share. Agents need a certificate of that authority in any case.
    pub enabled: bool,
    /// PEM of the server's certificate, then of those that lead from it to its authority. Read again when it changes.
    pub cert_file: Option<PathBuf>,
    /// PEM of its key.
    pub key_file: Option<PathBuf>,
    /// Host names and addresses that clients know this server by, for the certificate that the shared authority signs;
    /// those of this machine are in it anyway.
    pub names: Vec<String>,
    /// Milliseconds that the certificate of an agent is good for. It has another one made each day, and when two thirds
    /// are over.
    pub agent_certificate_ms: u64,
    /// Allows to listen beyond this machine without TLS, as behind a proxy that has it.
    pub plaintext: bool,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            enabled: false,
            cert_file: None,
            key_file: None,
            names: vec![],
            agent_certificate_ms: 90 * DAY,
            plaintext: false,
        }
    }
}

impl Tls {
    pub(super) fn check(&self) -> Vec<Invalid> {
        let mut found = vec![];
        let mut refuse = |refused, field, message: &str| {
            if refused {
                found.push(Invalid::new(field, message));
            }
        };
        let (cert, key) = (self.cert_file.is_some(), self.key_file.is_some());
        refuse(cert && !self.enabled, "tls.cert_file", "is used with tls.enabled only; set it");
        refuse(cert && !key, "tls.key_file", "must name the key of tls.cert_file");
        refuse(key && !cert, "tls.cert_file", "must name the certificate of tls.key_file");
        let bad = self.names.iter().find(|name| !is_host(name));
        let message = "must be host names and addresses, without port";
        refuse(bad.is_some(), "tls.names", message);
        let both = self.enabled && self.plaintext;
        refuse(both, "tls.plaintext", "contradicts tls.enabled; remove one of them");
        let life = 1_000..=MOST_OF_AGENT;
        let odd = !life.contains(&self.agent_certificate_ms);
        let message = "must be between a second and two years";
        refuse(odd, "tls.agent_certificate_ms", message);
        found
    }
}

fn is_host(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let name = name.strip_prefix("*.").unwrap_or(name);
    name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_contradictions_are_refused() {
        let refused = |text: &str| {
            let tls: Tls = toml::from_str(text).unwrap();
            tls.check().into_iter().map(|one| one.field).collect::<Vec<_>>()
        };
        assert_eq!(refused("enabled = true\ncert_file = \"a\"\nkey_file = \"b\""), [""; 0]);
        assert_eq!(refused("enabled = true\ncert_file = \"a\""), ["tls.key_file"]);
        assert_eq!(refused("enabled = true\nkey_file = \"a\""), ["tls.cert_file"]);
        assert_eq!(refused("cert_file = \"a\"\nkey_file = \"b\""), ["tls.cert_file"]);
        assert_eq!(refused("enabled = true\nplaintext = true"), ["tls.plaintext"]);
        let names = |names: &str| refused(&format!("enabled = true\nnames = {names}"));
        assert_eq!(names("[\"kiln.example.org\", \"*.a.b\", \"10.0.0.1\", \"fe80::1\"]"), [""; 0]);
        for name in ["kiln:7420", "https://kiln", "a..b", ""] {
            assert_eq!(names(&format!("[\"{name}\"]")), ["tls.names"], "{name}");
        }
    }
}
