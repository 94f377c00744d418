//! Claims: which jobs the agent of a session takes now.
//!
//! The committer gathers the claims of a moment; [`round`] judges them together inside a transaction of its group. Here
//! is what a session asks and hears.

pub(super) mod round;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kiln_core::{
    Millis,
    agent::Agent,
    id::{AgentId, ClassId, SessionId},
    session::Assignment,
};

use super::{App, Result};
use crate::store::{AgentRow, LeaseRow};

/// Until a claim that failed is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// A session that asks for what its agent has room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    session: SessionId,
    pub(super) agent: AgentId,
}

/// What a claim came to.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    assignments: Vec<Assignment>,
    standing: Standing,
    /// What it can run of what waits.
    classes: Vec<ClassId>,
    /// There was more than it took.
    more: bool,
    /// Agents for which candidates are kept, and until when.
    kept: BTreeSet<AgentId>,
    kept_until: Option<Millis>,
}

/// How the rows saw who asked.
#[derive(Debug, Default)]
enum Standing {
    /// Its session is closed, or its agent was removed.
    #[default]
    Closed,
    /// Its agent is given no jobs at the moment.
    Barred,
    /// Nothing waits that it could run.
    Idle,
    /// Leases of the agent by backend, those of this claim among them.
    Open(BTreeMap<String, u32>),
}

impl App {
    /// Leases what the agent of this session has room for. Empty where nothing fits, or the session is closed.
    pub async fn claim(&self, session: SessionId) -> Result<Vec<Assignment>> {
        let token = self.0.dispatch.begin_claim(session);
        let claimed = self.try_claim(session, token).await;
        if claimed.is_err() {
            // What it was woken for may still be there when the database is back.
            self.0.dispatch.defer(session, self.0.clock.elapsed() + AFTER_FAILURE);
        }
        claimed
    }

    async fn try_claim(
        &self,
        session: SessionId,
        token: Option<ClassId>,
    ) -> Result<Vec<Assignment>> {
        let Some(agent) = self.agent_of(session).await? else { return Ok(vec![]) };
        let claimed = self.0.committer.claim(Claim { session, agent }).await?;
        let (dispatch, now) = (&self.0.dispatch, self.0.clock.now());
        match claimed.standing {
            Standing::Closed => dispatch.close(session),
            Standing::Barred => dispatch.pass_on(token),
            Standing::Idle => {}
            Standing::Open(busy) => {
                let wait = |end: Millis| u64::try_from(end.saturating_sub(now)).unwrap_or(0);
                let wait = claimed.kept_until.map(wait).map(Duration::from_millis);
                let alarm = wait.map(|wait| self.0.clock.elapsed() + wait);
                dispatch.end_claim(session, busy, alarm);
                dispatch.wake_agents(&claimed.kept);
                // Without progress, two idle sessions would wake each other for ever.
                if claimed.more && !claimed.assignments.is_empty() {
                    dispatch.wake_one(self, &claimed.classes, now);
                }
            }
        }
        Ok(claimed.assignments)
    }
}

/// An agent's row as the scheduler sees it.
pub(super) fn as_agent(row: AgentRow, online: bool, busy: BTreeMap<String, u32>) -> Agent {
    Agent {
        id: row.id,
        name: row.name,
        admission: row.admission,
        online,
        profile: row.profile,
        load: row.load,
        busy,
    }
}

/// Leases by backend.
pub(super) fn busy<'a>(leases: impl IntoIterator<Item = &'a LeaseRow>) -> BTreeMap<String, u32> {
    let mut busy = BTreeMap::new();
    for lease in leases {
        *busy.entry(lease.backend.clone()).or_default() += 1;
    }
    busy
}
