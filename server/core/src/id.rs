//! Typed ids over UUID v7. They are made at the rim (`Clock`), never here.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an id like {prefix}_0192f0c1d2e37a4b8c5d6e7f80912a3b, got {text:?}")]
pub struct ParseIdError {
    prefix: &'static str,
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// What its text begins with.
            pub const PREFIX: &'static str = $prefix;

            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}_{}", $prefix, self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix(concat!($prefix, "_"))
                    .filter(|hex| hex.len() == 32)
                    .and_then(|hex| Uuid::try_parse(hex).ok())
                    .map(Self)
                    .ok_or_else(|| ParseIdError { prefix: $prefix, text: text.chars().take(80).collect() })
            }
        }
    };
}

id!(
    /// A project.
    ProjectId, "prj"
);
id!(
    /// A build: one submission.
    BuildId, "bld"
);
id!(
    /// A job of a build.
    JobId, "job"
);
id!(
    /// One attempt of a job on one agent; the fencing token of everything that the agent says about it.
    LeaseId, "lse"
);
id!(
    /// An enrolled agent.
    AgentId, "agt"
);
id!(
    /// One stream of an agent.
    SessionId, "ses"
);
id!(
    /// A bearer token.
    TokenId, "tok"
);
id!(
    /// A class: a set of constraints that some jobs share.
    ClassId, "cls"
);
id!(
    /// One value of a secret, from when it was set until the next one takes its place.
    SecretId, "sec"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_names_what_it_wants() {
        let id = BuildId::from_uuid(Uuid::from_u128(7));
        assert_eq!(id.to_string(), "bld_00000000000000000000000000000007");
        assert_eq!(id.to_string().parse(), Ok(id));
        let error = "job_00000000000000000000000000000007".parse::<BuildId>().unwrap_err();
        assert!(error.to_string().starts_with("expected an id like bld_"), "{error}");
        assert!("bld_7".parse::<BuildId>().is_err());
    }
}
