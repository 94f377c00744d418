//! Where a repository is, and what its URL says beside that: a name and a password, which no argument list, no
//! message and no file of the workspace may show.

/// A URL in its parts; what is no URL (a path) has no credential.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address<'a> {
    scheme: &'a str,
    /// `name:password` or `name`, as it was written.
    user: Option<&'a str>,
    host: &'a str,
    url: &'a str,
}

impl<'a> Address<'a> {
    pub(crate) fn of(url: &'a str) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or("") };
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        Self { scheme, user, host, url }
    }

    pub(crate) fn scheme(&self) -> &'a str {
        self.scheme
    }

    /// For people: without the user.
    pub(crate) fn public(&self) -> String {
        self.with_user("")
    }

    /// For git's arguments. Over SSH the name belongs to the address; elsewhere git is told by [`Self::credential`].
    pub(crate) fn argument(&self) -> String {
        match self.user {
            Some(user) if self.scheme == "ssh" => {
                let name = user.split_once(':').map_or(user, |(name, _)| name);
                self.with_user(&format!("{name}@"))
            }
            _ => self.public(),
        }
    }

    /// A line for the file of `git credential-store`.
    pub(crate) fn credential(&self) -> Option<String> {
        let user = self.user.filter(|_| matches!(self.scheme, "https" | "http"))?;
        let password = if user.contains(':') { "" } else { ":" };
        Some(format!("{}://{user}{password}@{}\n", self.scheme, self.host))
    }

    fn with_user(&self, user: &str) -> String {
        match self.user {
            Some(written) => self.url.replacen(&format!("{written}@"), user, 1),
            None => self.url.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_passed_and_stored_in_parts() {
        let parts = |url| {
            let address = Address::of(url);
            (address.public(), address.argument(), address.credential().unwrap_or_default())
        };
        let all = |one: &str, two: &str, three: &str| (one.into(), two.into(), three.into());
        for (url, expected) in [
            ("https://host/x@y", all("https://host/x@y", "https://host/x@y", "")),
            (
                "https://me:p%40w@host:8443/x@y",
                all(
                    "https://host:8443/x@y",
                    "https://host:8443/x@y",
                    "https://me:p%40w@host:8443\n",
                ),
            ),
            ("http://key@host/x", all("http://host/x", "http://host/x", "http://key:@host\n")),
            ("ssh://git@host/x", all("ssh://host/x", "ssh://git@host/x", "")),
            ("ssh://git:pw@host/x", all("ssh://host/x", "ssh://git@host/x", "")),
            ("/srv/me@home/x", all("/srv/me@home/x", "/srv/me@home/x", "")),
        ] {
            assert_eq!(parts(url), expected, "{url}");
        }
    }
}
