//! Hello: a stream of an agent becomes its session.
//!
//! In one transaction the older sessions are closed, the agent's journal is compared with the rows, and its leases are
//! settled, so that nothing can be claimed for or said in an older session afterwards.

use std::collections::BTreeSet;

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
    /// Opens a session: closes older ones and settles their leases in one transaction.
    pub async fn hello(&self, agent: AgentId, hello: Hello) -> Result<Welcome> {
        if hello.journal.len() > MAX_JOURNAL {
            return Err(Error::invalid("hello.journal", "must list at most 10,000 leases"));
        }
        if hello.instance.is_empty() || hello.instance.len() > MAX_INSTANCE {
            return Err(Error::invalid("hello.instance", "must have 1 to 100 bytes"));
        }
        let session = SessionId::from_uuid(self.0.clock.id());
        let (row, open, reconciled) = self.write(&Open { agent, hello: &hello, session }).await?;
        let draining = row.admission == Admission::Draining;
        let agent = as_agent(row, true, busy(&open));
        self.0.dispatch.open(session, agent, self.0.clock.elapsed());
        Ok(Welcome { session, reconciled, draining })
    }
}

struct Open<'a> {
    agent: AgentId,
    hello: &'a Hello,
    session: SessionId,
}

#[async_trait]
impl Work for Open<'_> {
    type Output = (AgentRow, Vec<LeaseRow>, Reconciled);

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<(Self::Output, Effects)> {
        let now = app.0.clock.now();
        let agent = tx.lock_agent(self.agent).await?;
        let mut agent = agent.ok_or_else(|| Error::not_found("agent", self.agent))?;
        self.replace(app, tx, &agent, now).await?;
        let rows = self.leases(tx).await?;
        let facts: Vec<_> = rows.iter().map(LeaseRow::facts).collect();
        let reconciled = reconcile(&self.hello.journal, &facts);
        let mut effects = apply(tx, &transitions(&reconciled, &rows), now).await?.effects;

        tx.insert_session(&SessionRow {
            id: self.session,
            agent: self.agent,
            instance: self.hello.instance.clone(),
            epoch: self.hello.epoch,
            beat: 0,
            open: true,
            opened_at: now,
        })
        .await?;
        let open = self.keep(tx).await?;
        agent.profile = self.hello.profile.clone();
        agent.epoch = agent.epoch.max(self.hello.epoch);
        agent.admission = agent.admission.at(now);
        agent.seen_at = now;
        tx.save_agent(&agent).await?;
        effects.agents.insert(self.agent);
        Ok(((agent, open, reconciled), effects))
    }
}

impl Open<'_> {
    /// Closes older sessions, unless one of them shows that this Hello is none of this agent's.
    async fn replace(
        &self,
        app: &App,
        tx: &mut dyn Tx,
        agent: &AgentRow,
        now: Millis,
    ) -> Result<()> {
        let sessions = tx.lock_sessions_of(self.agent).await?;
        let open = sessions.iter().map(|old| Opened {
            instance: &old.instance,
            epoch: old.epoch,
            alive: app.seems_alive(old, agent, now),
        });
        admit(open, &self.hello.instance, self.hello.epoch)
            .map_err(|refusal| refused(refusal, &agent.name))?;
        for old in sessions {
            tx.close_session(old.id, None).await?;
        }
        Ok(())
    }

    /// Open leases of the agent and those that it lists, read under the locks of their builds.
    async fn leases(&self, tx: &mut dyn Tx) -> Result<Vec<LeaseRow>> {
        let listed: Vec<LeaseId> = self.hello.journal.iter().map(|(lease, _)| *lease).collect();
        let open = tx.open_leases(self.agent).await?;
        let builds: BTreeSet<BuildId> = open.iter().map(|lease| lease.build).collect();
        if !builds.is_empty() {
            tx.lock_builds(&builds.into_iter().collect::<Vec<_>>()).await?;
        }
        let mut rows = tx.open_leases(self.agent).await?;
        if !listed.is_empty() {
            let known: BTreeSet<LeaseId> = rows.iter().map(|lease| lease.id).collect();
            let others = tx.leases(&listed).await?;
            rows.extend(
                others
                    .into_iter()
                    .filter(|row| row.agent == self.agent && !known.contains(&row.id)),
            );
        }
        Ok(rows)
    }

    /// The leases that stay open go on in this session.
    async fn keep(&self, tx: &mut dyn Tx) -> Result<Vec<LeaseRow>> {
        let mut open = tx.open_leases(self.agent).await?;
        for lease in &mut open {
            lease.session = self.session;
        }
        if !open.is_empty() {
            tx.save_leases(&open).await?;
        }
        Ok(open)
    }
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

fn transitions(reconciled: &Reconciled, rows: &[LeaseRow]) -> Vec<Transition> {
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
            return silence < self.0.timing.grace;
        }
        let grace = i64::try_from(self.0.timing.grace.as_millis()).unwrap_or(Millis::MAX);
        now.saturating_sub(agent.seen_at) < grace
    }
}
