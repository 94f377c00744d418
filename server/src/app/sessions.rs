//! What agents say of their leases, and what the rows say of an agent.

use async_trait::async_trait;
use kiln_core::{
    agent::{Load, Profile},
    id::{AgentId, BuildId, JobId, LeaseId, SessionId},
    job::{Event, Rejected},
    outcome::{FailureKind, Outcome},
    session::{LeasePhase, Record, Recorded, Report},
};

use super::{App, Error, Result, names::Holder, work::Work};
use crate::store::{
    self, Tx,
    jobs::{Effects, Refused, Transition},
};

/// A record with the job and the build of its lease.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) build: BuildId,
    job: JobId,
    record: Record,
}

impl App {
    /// Records what an agent said of a lease, grouped with what others say at the same moment.
    pub async fn record(&self, session: SessionId, record: Record) -> Result<Recorded> {
        let lease = lease_of(&record);
        let Some(Holder { agent, build, job }) = self.holder(lease).await? else {
            return Ok(Recorded::Stale);
        };
        if self.agent_of(session).await? != Some(agent) {
            return Ok(Recorded::Stale);
        }
        let returned = matches!(record, Record::Return(..)).then(|| record.clone());
        let record = if returned.is_some() { self.settle(record).await? } else { record };
        let recorded = self.0.committer.record(Said { build, job, record }).await?;
        match returned.filter(|_| recorded == Recorded::Stale) {
            // It may have been started since its row was read.
            Some(record) => match self.settle(record).await? {
                record @ Record::Finish(..) => {
                    self.0.committer.record(Said { build, job, record }).await
                }
                _ => Ok(recorded),
            },
            None => Ok(recorded),
        }
    }

    /// A started lease can't go back to the queue for free: giving it back is a failure of the machinery.
    async fn settle(&self, record: Record) -> Result<Record> {
        let row = self.0.store.lease(lease_of(&record)).await?;
        Ok(match record {
            Record::Return(lease, reason)
                if row.is_some_and(|row| row.phase == LeasePhase::Running) =>
            {
                let outcome = Outcome::failed(FailureKind::Infra, reason);
                let log_lengths = std::collections::BTreeMap::new();
                Record::Finish(lease, Report { outcome, artifacts: vec![], log_lengths })
            }
            other => other,
        })
    }

    /// The heartbeat of a session, grouped with those of others; false where it is closed.
    pub async fn beat(&self, session: SessionId, load: Load) -> Result<bool> {
        // The agent lives, whether or not the database can be told.
        self.0.dispatch.heard(session, load, self.0.clock.elapsed());
        let open = self.0.beats.beat(session, load).await?;
        if !open {
            self.0.dispatch.close(session);
        }
        Ok(open)
    }

    pub async fn update_profile(&self, agent: AgentId, profile: Profile) -> Result<()> {
        self.write(&SaveProfile { agent, profile: &profile }).await?;
        self.0.dispatch.profile(agent, profile);
        Ok(())
    }

    /// Who speaks in a session; those that are held here are known without asking.
    pub(super) async fn agent_of(&self, session: SessionId) -> Result<Option<AgentId>> {
        if let Some(agent) = self.0.dispatch.agent_of(session) {
            return Ok(Some(agent));
        }
        let sessions = self.0.store.sessions().await?;
        Ok(sessions.into_iter().find(|row| row.id == session).map(|row| row.agent))
    }
}

fn lease_of(record: &Record) -> LeaseId {
    match record {
        Record::Start(lease) | Record::Return(lease, _) | Record::Finish(lease, _) => *lease,
    }
}

/// One transition for each word.
pub(super) fn transitions(words: &[&Said]) -> Vec<Transition> {
    words
        .iter()
        .map(|said| match &said.record {
            Record::Start(lease) => Transition::new(said.build, said.job, Event::Start(*lease)),
            Record::Return(lease, reason) => {
                Transition::new(said.build, said.job, Event::Return(*lease)).because(reason)
            }
            Record::Finish(lease, report) => Transition {
                report: Some(report.clone()),
                ..Transition::new(
                    said.build,
                    said.job,
                    Event::Finish(*lease, report.outcome.clone()),
                )
            },
        })
        .collect()
}

/// What each word is answered. A report that was taken in an earlier round is acknowledged again.
pub(super) async fn answers(
    tx: &mut dyn Tx,
    words: &[&Said],
    results: &[Result<(), Refused>],
) -> store::Result<Vec<Recorded>> {
    let mut answers = Vec::with_capacity(words.len());
    for (said, result) in words.iter().zip(results) {
        answers.push(match (&said.record, result) {
            (Record::Start(_), Ok(()) | Err(Refused::Job(Rejected::Repeated))) => Recorded::Started,
            (Record::Return(..), Ok(())) => Recorded::Returned,
            (Record::Finish(..), Ok(()) | Err(Refused::Job(Rejected::Repeated))) => {
                Recorded::Finished
            }
            (Record::Finish(lease, _), Err(_)) if was_taken(tx, *lease).await? => {
                Recorded::Finished
            }
            _ => Recorded::Stale,
        });
    }
    Ok(answers)
}

async fn was_taken(tx: &mut dyn Tx, lease: LeaseId) -> store::Result<bool> {
    let rows = tx.leases(&[lease]).await?;
    Ok(rows.iter().any(|row| row.phase == LeasePhase::Finished))
}

struct SaveProfile<'a> {
    agent: AgentId,
    profile: &'a Profile,
}

#[async_trait]
impl Work for SaveProfile<'_> {
    type Output = ();

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<((), Effects)> {
        let row = tx.lock_agents(&[self.agent]).await?.pop();
        let mut row = row.ok_or_else(|| Error::not_found("agent", self.agent))?;
        row.profile = self.profile.clone();
        tx.save_agents(&[row]).await?;
        Ok(((), Effects::default()))
    }
}
