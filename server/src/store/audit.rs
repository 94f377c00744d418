//! Rows of the audit log.

use std::borrow::Cow;

use kiln_core::Millis;

/// What kind of caller did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActorKind {
    Token,
    Agent,
    /// The server by itself.
    Server,
}

impl ActorKind {
    pub const ALL: [Self; 3] = [Self::Token, Self::Agent, Self::Server];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Agent => "agent",
            Self::Server => "server",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// What was done, on what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditAct {
    /// `token.create`: the kind of the object, a dot, a verb.
    pub action: Cow<'static, str>,
    /// Id of the object.
    pub object: String,
    /// Its name at that time; empty where it has none.
    pub object_name: String,
    /// False where nothing was left to do.
    pub changed: bool,
    /// More about it, for people; never a secret.
    pub detail: String,
}

impl AuditAct {
    #[expect(clippy::needless_pass_by_value, reason = "ids and names alike are passed")]
    pub fn new(action: &'static str, object: impl ToString, object_name: &str) -> Self {
        Self {
            action: Cow::Borrowed(action),
            object: object.to_string(),
            object_name: object_name.to_owned(),
            changed: true,
            detail: String::new(),
        }
    }

    #[must_use]
    pub fn with(self, detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..self }
    }

    #[must_use]
    pub fn changed(self, changed: bool) -> Self {
        Self { changed, ..self }
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// 1, 2, 3 … without gaps; given by the store.
    pub number: i64,
    pub at: Millis,
    pub actor_kind: ActorKind,
    /// Id of the token or agent.
    pub actor: String,
    pub actor_name: String,
    /// Address that the actor called from.
    pub peer: Option<String>,
    pub act: AuditAct,
}

/// Which records a list wants. Empty texts want all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Id or name.
    pub actor: String,
    /// An action, or the kind of object before its dot.
    pub action: String,
    /// Id or name.
    pub object: String,
    pub from: Option<Millis>,
    pub until: Option<Millis>,
}
