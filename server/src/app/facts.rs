//! What the rows say of agents: read together by all sessions of this replica that look at the same moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kiln_core::{agent::Admission, id::AgentId, session::LeaseFacts};

use super::{App, Error, Result, gather::Question};

/// A session looks at the rows of its agent.
#[derive(Debug)]
pub(super) struct Look(AgentId);

impl App {
    /// What the rows say of an agent's open leases, and whether it drains.
    pub async fn facts(&self, agent: AgentId) -> Result<(Vec<LeaseFacts>, bool)> {
        self.0.facts.ask(Look(agent)).await
    }

    /// Until the next sweep. All sessions of a replica sweep at the same moment, so that they share their reads.
    pub fn until_sweep(&self) -> Duration {
        let sweep = self.timing().sweep.as_nanos().max(1);
        let past = self.0.clock.elapsed().as_nanos() % sweep;
        Duration::from_nanos(u64::try_from(sweep - past).unwrap_or(u64::MAX))
    }
}

impl Question for Look {
    type Answer = (Vec<LeaseFacts>, bool);
    const MOST: usize = 1_000;

    async fn answer(app: &App, looks: &[Self]) -> Result<Vec<Result<Self::Answer>>> {
        let agents: BTreeSet<AgentId> = looks.iter().map(|look| look.0).collect();
        let agents: Vec<AgentId> = agents.into_iter().collect();
        let leases = app.0.store.open_leases(Some(&agents)).await?;
        let admissions = app.0.store.admissions(Some(&agents)).await?;
        let mut facts: BTreeMap<AgentId, Vec<LeaseFacts>> = BTreeMap::new();
        for lease in leases {
            facts.entry(lease.agent).or_default().push(lease.facts());
        }
        let admissions: BTreeMap<AgentId, Admission> = admissions.into_iter().collect();
        let answer = |agent| {
            let admission = admissions.get(&agent).ok_or(Error::Evicted)?;
            app.0.dispatch.admitted(agent, admission);
            let leases = facts.get(&agent).cloned().unwrap_or_default();
            Ok((leases, *admission == Admission::Draining))
        };
        Ok(looks.iter().map(|look| answer(look.0)).collect())
    }
}
