//! Hello: a stream of an agent becomes its session.
//!
//! In one transaction the older sessions are closed, the agent's journal is compared with the rows, and its leases are
//! settled, so that nothing can be claimed for or said in an older session afterwards. The Hellos of a moment share it:
//! after a restart all agents come at once.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use kiln_core::{
    Millis,
    agent::Admission,
    id::{AgentId, BuildId, LeaseId, SessionId},
    job::Event,
    session::{Opened, Reconciled, Refusal, admit, reconcile},
};

use super::{
    App, Error, Hello, Result, Welcome,
    claim::{as_agent, busy},
    gather::Question,
    work::Work,
};
use crate::store::{
    AgentRow, LeaseRow, SessionRow, Tx,
    jobs::{Effects, Transition, apply},
};

/// Leases of a journal; an agent has at most a few hundred slots.
const MAX_JOURNAL: usize = 10_000;
const MAX_INSTANCE: usize = 100;

impl App {
    /// Opens a session: closes older ones and settles their leases in one transaction, which those who say Hello at the
    /// same moment share.
    pub async fn hello(&self, agent: AgentId, hello: Hello) -> Result<Welcome> {
        if hello.journal.len() > MAX_JOURNAL {
            return Err(Error::invalid("hello.journal", "must list at most 10,000 leases"));
        }
        if hello.instance.is_empty() || hello.instance.len() > MAX_INSTANCE {
            return Err(Error::invalid("hello.instance", "must have 1 to 100 bytes"));
        }
        let session = SessionId::from_uuid(self.0.clock.id());
        self.0.hellos.ask(Greeting { agent, hello, session }).await
    }
}

/// A Hello, and the session that it is to open.
#[derive(Debug)]
pub(super) struct Greeting {
    agent: AgentId,
    hello: Hello,
    session: SessionId,
}

impl Question for Greeting {
    type Answer = Welcome;
    const MOST: usize = 100;

    async fn answer(app: &App, greetings: &[Self]) -> Result<Vec<Result<Welcome>>> {
        let opened = app.write(&Open(greetings)).await?;
        let welcome = |greeting: &Self, opened: Opening| {
            let Opening { row, open, reconciled } = opened;
            let draining = row.admission == Admission::Draining;
            let agent = as_agent(row, true, busy(&open));
            app.0.dispatch.open(greeting.session, agent, app.0.clock.elapsed());
            Welcome { session: greeting.session, reconciled, draining }
        };
        let answers = greetings.iter().zip(opened);
        Ok(answers.map(|(greeting, opened)| Ok(welcome(greeting, opened?))).collect())
    }
}

/// An agent with its new session, and the leases that go on in it.
struct Opening {
    row: AgentRow,
    open: Vec<LeaseRow>,
    reconciled: Reconciled,
}

struct Open<'a>(&'a [Greeting]);

#[async_trait]
impl Work for Open<'_> {
    type Output = Vec<Result<Opening>>;

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<(Self::Output, Effects)> {
        let mut opened = BTreeMap::new();
        let mut effects = Effects::default();
        let mut left: Vec<usize> = (0..self.0.len()).collect();
        // Who says Hello twice at once is heard twice, one after the other.
        while !left.is_empty() {
            let mut agents = BTreeSet::new();
            let (first, later): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|at| agents.insert(self.0[*at].agent));
            let hellos: Vec<&Greeting> = first.iter().map(|at| &self.0[*at]).collect();
            let (results, effects_of) = open(app, tx, &hellos).await?;
            opened.extend(first.into_iter().zip(results));
            effects.merge(effects_of);
            left = later;
        }
        Ok((opened.into_values().collect(), effects))
    }
}

/// Opens sessions of different agents; one result for each.
async fn open(
    app: &App,
    tx: &mut dyn Tx,
    hellos: &[&Greeting],
) -> Result<(Vec<Result<Opening>>, Effects)> {
    let now = app.0.clock.now();
    let ids: Vec<AgentId> = hellos.iter().map(|greeting| greeting.agent).collect();
    let rows = tx.lock_agents(&ids).await?;
    let mut rows: BTreeMap<_, _> = rows.into_iter().map(|row| (row.id, row)).collect();
    let old = tx.lock_sessions_of(&ids).await?;
    let refusals: Vec<Option<Error>> = hellos
        .iter()
        .map(|greeting| match rows.get(&greeting.agent) {
            Some(agent) => refusal(app, greeting, agent, &old, now),
            None => Some(Error::not_found("agent", greeting.agent)),
        })
        .collect();
    let welcome = hellos.iter().zip(&refusals).filter(|(_, refusal)| refusal.is_none());
    let welcome: Vec<&Greeting> = welcome.map(|(greeting, _)| *greeting).collect();
    let (mut settled, effects) = settle(tx, &welcome, &old, now).await?;

    let mut results = vec![];
    let mut saved = vec![];
    for (greeting, refusal) in hellos.iter().zip(refusals) {
        let settled = settled.remove(&greeting.agent);
        results.push(match (refusal, rows.remove(&greeting.agent).zip(settled)) {
            (None, Some((mut row, (reconciled, open)))) => {
                row.profile = greeting.hello.profile.clone();
                row.epoch = row.epoch.max(greeting.hello.epoch);
                row.admission = row.admission.at(now);
                row.seen_at = now;
                saved.push(row.clone());
                Ok(Opening { row, open, reconciled })
            }
            (Some(refusal), _) => Err(refusal),
            (None, None) => Err(Error::not_found("agent", greeting.agent)),
        });
    }
    tx.save_agents(&saved).await?;
    Ok((results, effects))
}

/// One of the agent's open sessions may show that this Hello is none of this agent's.
fn refusal(
    app: &App,
    greeting: &Greeting,
    agent: &AgentRow,
    old: &[SessionRow],
    now: Millis,
) -> Option<Error> {
    let open = old.iter().filter(|old| old.agent == agent.id).map(|old| Opened {
        instance: &old.instance,
        epoch: old.epoch,
        alive: app.seems_alive(old, agent, now),
    });
    let admitted = admit(open, &greeting.hello.instance, greeting.hello.epoch);
    admitted.err().map(|refusal| refused(refusal, &agent.name))
}

/// What became of an agent's journal, and its leases that stay open.
type Settled = BTreeMap<AgentId, (Reconciled, Vec<LeaseRow>)>;

/// Closes older sessions, settles the leases of the journals, and opens the new sessions.
async fn settle(
    tx: &mut dyn Tx,
    hellos: &[&Greeting],
    old: &[SessionRow],
    now: Millis,
) -> Result<(Settled, Effects)> {
    let ids: Vec<AgentId> = hellos.iter().map(|greeting| greeting.agent).collect();
    let old: Vec<&SessionRow> = old.iter().filter(|old| ids.contains(&old.agent)).collect();
    tx.close_sessions(&old.iter().map(|old| old.id).collect::<Vec<_>>()).await?;
    let rows = leases(tx, hellos, &ids).await?;
    let mut settled = Settled::new();
    let mut changes = vec![];
    for greeting in hellos {
        let own: Vec<_> = rows.iter().filter(|row| row.agent == greeting.agent).collect();
        let facts: Vec<_> = own.iter().map(|row| row.facts()).collect();
        let reconciled = reconcile(&greeting.hello.journal, &facts);
        changes.extend(transitions(&reconciled, &own));
        settled.insert(greeting.agent, (reconciled, vec![]));
    }
    let mut effects = apply(tx, &changes, now).await?.effects;
    effects.agents.extend(old.iter().map(|old| old.agent));

    let sessions: Vec<SessionRow> = hellos.iter().map(|greeting| session(greeting, now)).collect();
    tx.insert_sessions(&sessions).await?;
    if !rows.is_empty() {
        let mut open = tx.open_leases(&ids).await?;
        for lease in &mut open {
            let new = sessions.iter().find(|session| session.agent == lease.agent);
            lease.session = new.map_or(lease.session, |session| session.id);
        }
        tx.save_leases(&open).await?;
        for lease in open {
            if let Some((_, leases)) = settled.get_mut(&lease.agent) {
                leases.push(lease);
            }
        }
    }
    Ok((settled, effects))
}

fn session(greeting: &Greeting, now: Millis) -> SessionRow {
    SessionRow {
        id: greeting.session,
        agent: greeting.agent,
        instance: greeting.hello.instance.clone(),
        epoch: greeting.hello.epoch,
        beat: 0,
        open: true,
        opened_at: now,
    }
}

/// Open leases of the agents and those that they list, read under the locks of their builds. No other can come: the
/// sessions are closed.
async fn leases(
    tx: &mut dyn Tx,
    hellos: &[&Greeting],
    agents: &[AgentId],
) -> Result<Vec<LeaseRow>> {
    let mut rows = tx.open_leases(agents).await?;
    let builds: BTreeSet<BuildId> = rows.iter().map(|lease| lease.build).collect();
    if !builds.is_empty() {
        tx.lock_builds(&builds.into_iter().collect::<Vec<_>>()).await?;
        rows = tx.open_leases(agents).await?;
    }
    let journals = hellos.iter().flat_map(|greeting| &greeting.hello.journal);
    let mut listed: BTreeSet<LeaseId> = journals.map(|(lease, _)| *lease).collect();
    for row in &rows {
        listed.remove(&row.id);
    }
    if !listed.is_empty() {
        let others = tx.leases(&listed.into_iter().collect::<Vec<_>>()).await?;
        rows.extend(others.into_iter().filter(|row| agents.contains(&row.agent)));
    }
    Ok(rows)
}

fn refused(refusal: Refusal, name: &str) -> Error {
    let (code, message) = match refusal {
        Refusal::Elsewhere => (
            "AGENT_CONNECTED",
            format!(
                "agent {name:?} is connected from another machine or data folder; where this one is a copy, enrol it \
                 under a name of its own in an empty folder; where it took the other's place, wait until the other \
                 was silent for the grace time"
            ),
        ),
        Refusal::Outdated => (
            "HELLO_OUTDATED",
            format!("agent {name:?} has said a later Hello from this data folder"),
        ),
    };
    Error::Precondition { code, message }
}

fn transitions(reconciled: &Reconciled, rows: &[&LeaseRow]) -> Vec<Transition> {
    let of = |ids: &[LeaseId], event: fn(LeaseId) -> Event, reason: &'static str| {
        ids.iter()
            .filter_map(|id| rows.iter().find(|row| row.id == *id))
            .map(|row| Transition::new(row.build, row.job, event(row.id)).because(reason))
            .collect::<Vec<_>>()
    };
    let mut all = of(&reconciled.start, Event::Start, "");
    all.extend(of(&reconciled.give_back, Event::Return, "the agent never got it"));
    all.extend(of(&reconciled.expire, Event::Expire, "the agent does not know it any more"));
    all
}

impl App {
    /// Judged by what this replica heard itself, else by what its reaper saw, else by the row's last heartbeat.
    fn seems_alive(&self, session: &SessionRow, agent: &AgentRow, now: Millis) -> bool {
        let elapsed = self.0.clock.elapsed();
        let heard = self.0.dispatch.silence(session.id, elapsed);
        if let Some(silence) = heard.or_else(|| self.0.reaper.silence(session, elapsed)) {
            return silence < self.timing().grace;
        }
        let grace = i64::try_from(self.timing().grace.as_millis()).unwrap_or(Millis::MAX);
        now.saturating_sub(agent.seen_at) < grace
    }
}
