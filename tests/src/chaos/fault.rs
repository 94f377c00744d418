//! The list of faults. A new one is a line here.

use super::blow::{
    Blow::{self, Cut, Fill, Freeze, Jump, Kill, Terminate},
    Cut::{HalfOpen, Refuse, Reset, Silent, Slow},
    Line::{Agent as ToAgent, Database as ToDatabase},
    Who::{Agent, Postgres, Server},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Database {
    Sqlite,
    Postgres,
}

impl Database {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plot {
    /// The job runs once, its log is whole, its build succeeds; whoever watched all the time saw the same.
    Survives,
    /// The job is cancelled around the blow: it ends, the build is cancelled, nothing of it runs on.
    Cancelled,
    /// The agent seems gone: the job is run again by another within the grace time, and what the first one says when it
    /// comes back counts for nothing.
    Replaced,
    /// The job of an agent that seems gone is cancelled: that agent can't keep it alive.
    Deserted,
    /// The job holds a concurrency group of one: another one of the group never runs at the same time.
    Exclusive,
}

/// How long the blow lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// A few seconds at most.
    Short,
    /// Longer than an agent may be silent.
    PastGrace,
}

/// Something that breaks.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub name: &'static str,
    pub plot: Plot,
    pub blows: &'static [Blow],
    pub outage: Outage,
}

impl Fault {
    const fn survives(name: &'static str, blows: &'static [Blow]) -> Self {
        Self { name, plot: Plot::Survives, blows, outage: Outage::Short }
    }

    const fn outlasts(name: &'static str, blows: &'static [Blow]) -> Self {
        Self { name, plot: Plot::Survives, blows, outage: Outage::PastGrace }
    }

    const fn cancelled(name: &'static str, blows: &'static [Blow]) -> Self {
        Self { name, plot: Plot::Cancelled, blows, outage: Outage::Short }
    }

    const fn gone(name: &'static str, plot: Plot, blows: &'static [Blow]) -> Self {
        Self { name, plot, blows, outage: Outage::PastGrace }
    }

    /// The databases where it can happen.
    pub fn databases(&self) -> &'static [Database] {
        let postgres = |blow: &Blow| {
            matches!(
                blow,
                Kill(Postgres) | Terminate(Postgres) | Freeze(Postgres) | Cut(ToDatabase, _)
            )
        };
        if self.blows.iter().any(postgres) {
            &[Database::Postgres]
        } else {
            &[Database::Sqlite, Database::Postgres]
        }
    }

    pub(super) fn strikes(&self, wanted: impl Fn(&Blow) -> bool) -> bool {
        self.blows.iter().any(wanted)
    }
}

const HOUR: i64 = 3_600;

pub const FAULTS: &[Fault] = &[
    Fault::survives("kill-server", &[Kill(Server)]),
    Fault::survives("kill-agent", &[Kill(Agent)]),
    Fault::survives("kill-both", &[Kill(Server), Kill(Agent)]),
    Fault::survives("kill-postgres", &[Kill(Postgres)]),
    Fault::survives("kill-all", &[Kill(Postgres), Kill(Server), Kill(Agent)]),
    Fault::survives("term-server", &[Terminate(Server)]),
    Fault::survives("term-agent", &[Terminate(Agent)]),
    Fault::survives("term-postgres", &[Terminate(Postgres)]),
    Fault::survives("agent-refused", &[Cut(ToAgent, Refuse)]),
    Fault::survives("agent-reset", &[Cut(ToAgent, Reset)]),
    Fault::survives("agent-silent", &[Cut(ToAgent, Silent)]),
    Fault::survives("agent-half-open", &[Cut(ToAgent, HalfOpen)]),
    Fault::survives("agent-slow", &[Cut(ToAgent, Slow)]),
    Fault::survives("database-refused", &[Cut(ToDatabase, Refuse)]),
    Fault::survives("database-reset", &[Cut(ToDatabase, Reset)]),
    Fault::survives("database-silent", &[Cut(ToDatabase, Silent)]),
    Fault::survives("database-half-open", &[Cut(ToDatabase, HalfOpen)]),
    Fault::survives("database-slow", &[Cut(ToDatabase, Slow)]),
    Fault::survives("full-disk-agent", &[Fill(Agent)]),
    Fault::survives("full-disk-server", &[Fill(Server)]),
    Fault::survives("clock-server-forward", &[Jump(Server, HOUR)]),
    Fault::survives("clock-server-back", &[Jump(Server, -HOUR)]),
    Fault::survives("clock-agent-forward", &[Jump(Agent, HOUR)]),
    Fault::survives("clock-agent-back", &[Jump(Agent, -HOUR)]),
    Fault::outlasts("long-outage-server", &[Kill(Server)]),
    Fault::outlasts("long-outage-postgres", &[Kill(Postgres)]),
    Fault::outlasts("long-freeze-server", &[Freeze(Server)]),
    Fault::outlasts("long-freeze-postgres", &[Freeze(Postgres)]),
    Fault::cancelled("cancel-kill-server", &[Kill(Server)]),
    Fault::cancelled("cancel-kill-agent", &[Kill(Agent)]),
    Fault::cancelled("cancel-kill-both", &[Kill(Server), Kill(Agent)]),
    Fault::cancelled("cancel-agent-refused", &[Cut(ToAgent, Refuse)]),
    Fault::cancelled("cancel-full-disk-agent", &[Fill(Agent)]),
    Fault::gone("lost-agent", Plot::Replaced, &[Kill(Agent)]),
    Fault::gone("frozen-agent", Plot::Replaced, &[Freeze(Agent)]),
    Fault::gone("silent-agent", Plot::Replaced, &[Cut(ToAgent, Silent)]),
    Fault::gone("cancel-lost-agent", Plot::Deserted, &[Kill(Agent)]),
    Fault::gone("exclusive-lost-agent", Plot::Exclusive, &[Kill(Agent)]),
    Fault::gone("exclusive-frozen-agent", Plot::Exclusive, &[Freeze(Agent)]),
    Fault::gone("exclusive-silent-agent", Plot::Exclusive, &[Cut(ToAgent, Silent)]),
    Fault {
        outage: Outage::Short,
        ..Fault::gone("exclusive-kill-both", Plot::Exclusive, &[Kill(Server), Kill(Agent)])
    },
];
