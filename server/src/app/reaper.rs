//! One round of the reaper: dead sessions, overdue jobs, ended pauses, builds whose counts differ.
//!
//! A session is dead only when this reaper itself has read the same beat, on its own monotonic clock, for the whole
//! grace time without a gap in its reads. Comparing times in rows would kill every job after an outage that is longer
//! than the grace time, and on a clock that jumps.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use kiln_core::{
    agent::Admission,
    id::{AgentId, BuildId, SessionId},
    job::Event,
    session::LeasePhase,
};

use super::{App, Result, Timing, work::Work};
use crate::store::{
    LeaseRow, SessionRow, Tx,
    jobs::{Effects, Transition, apply, repair},
};

/// Reads that are further apart than this many sweeps say nothing about what happened between them.
const GAP_SWEEPS: u32 = 3;
/// Overdue jobs of one transaction.
const OVERDUE: u32 = 500;
/// Builds that are repaired in one round.
const REPAIRS: u32 = 10;
/// Between two looks at all counts, which are slow.
const AUDIT: Duration = Duration::from_mins(1);

/// What the reaper remembers from round to round.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    observed: BTreeMap<SessionId, Observed>,
    last_read: Option<Duration>,
    last_audit: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Observed {
    beat: i64,
    /// When this beat was read for the first time.
    since: Duration,
}

/// A session that was silent for the whole grace time, and the beat that it stopped at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dead {
    session: SessionRow,
    read_at: Duration,
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long this reaper has read the same beat.
    pub(super) fn silence(&self, session: &SessionRow, now: Duration) -> Option<Duration> {
        let memory = self.lock();
        let seen = memory.observed.get(&session.id)?;
        Some(if seen.beat == session.beat {
            now.saturating_sub(seen.since)
        } else {
            Duration::ZERO
        })
    }

    /// Takes a read of the open sessions that began and ended at these times.
    fn observe(
        &self,
        sessions: &[SessionRow],
        began: Duration,
        ended: Duration,
        limits: (Duration, Duration),
        failed: bool,
    ) -> Vec<Dead> {
        let (grace, longest_gap) = limits;
        let mut memory = self.lock();
        let gap = memory.last_read.is_none_or(|last| ended.saturating_sub(last) > longest_gap);
        if gap || failed {
            memory.observed.clear();
        }
        memory.last_read = Some(ended);
        let mut dead = vec![];
        let mut observed = BTreeMap::new();
        for session in sessions {
            let seen = memory.observed.get(&session.id).copied();
            let seen = seen
                .filter(|seen| seen.beat == session.beat)
                .unwrap_or(Observed { beat: session.beat, since: ended });
            observed.insert(session.id, seen);
            if began.saturating_sub(seen.since) >= grace {
                dead.push(Dead { session: session.clone(), read_at: ended });
            }
        }
        memory.observed = observed;
        dead
    }

    fn audit_is_due(&self, now: Duration) -> bool {
        let mut memory = self.lock();
        let due = memory.last_audit.is_none_or(|last| now.saturating_sub(last) >= AUDIT);
        if due {
            memory.last_audit = Some(now);
        }
        due
    }
}

impl App {
    /// One round of the reaper: dead sessions, overdue jobs, ended pauses, differences between counts and jobs.
    /// It keeps what it observed from round to round itself.
    pub async fn sweep(&self) -> Result<()> {
        let began = self.0.clock.elapsed();
        let swept = self.try_sweep().await;
        let took = self.0.clock.elapsed().saturating_sub(began);
        self.0.metrics.swept(swept.is_ok(), took);
        swept
    }

    async fn try_sweep(&self) -> Result<()> {
        self.sweep_sessions().await?;
        self.sweep_overdue().await?;
        self.sweep_pauses().await?;
        if self.0.reaper.audit_is_due(self.0.clock.elapsed()) {
            self.audit().await?;
        }
        self.rearm().await?;
        self.tell_uses().await?;
        self.look_again();
        Ok(())
    }

    async fn sweep_sessions(&self) -> Result<()> {
        let clock = &self.0.clock;
        let began = clock.elapsed();
        let known = self.0.dispatch.sessions();
        let sessions = self.0.store.sessions().await?;
        let ended = clock.elapsed();
        let open: BTreeSet<SessionId> = sessions.iter().map(|session| session.id).collect();
        self.0.dispatch.retain(&open, &known);
        let Timing { grace, sweep, .. } = self.timing();
        let limits = (grace, sweep * GAP_SWEEPS);
        let failed = self.0.beats.take_failed();
        for dead in self.0.reaper.observe(&sessions, began, ended, limits, failed) {
            let heard = self.0.dispatch.silence(dead.session.id, clock.elapsed());
            // What this replica heard itself may not have reached the rows yet.
            if heard.is_some_and(|silence| silence < grace) {
                continue;
            }
            let agent = dead.session.agent;
            let lost = self.write(&Bury { dead: &dead }).await?;
            if let Some(lost) = lost {
                self.0.dispatch.close(dead.session.id);
                self.0.metrics.session_lost();
                tracing::warn!(%agent, session = %dead.session.id, leases = lost, "an agent fell silent");
            }
        }
        Ok(())
    }

    async fn sweep_overdue(&self) -> Result<()> {
        let jobs = self.0.store.overdue(self.0.clock.now(), OVERDUE).await?;
        if jobs.is_empty() {
            return Ok(());
        }
        let transitions: Vec<_> = jobs
            .into_iter()
            .map(|(build, job)| Transition::new(build, job, Event::Overdue))
            .collect();
        self.write(&Apply(transitions)).await
    }

    async fn sweep_pauses(&self) -> Result<()> {
        let now = self.0.clock.now();
        for (agent, admission) in self.0.store.admissions(None).await? {
            if admission != Admission::Open && admission.at(now) == Admission::Open {
                self.write(&EndPause(agent)).await?;
                self.0.dispatch.change(agent, |known| known.admission = Admission::Open);
            }
        }
        Ok(())
    }

    async fn audit(&self) -> Result<()> {
        for build in self.0.store.inconsistent(REPAIRS).await? {
            self.0.metrics.build_repaired();
            for difference in self.write(&Repair(build)).await? {
                tracing::error!(%build, %difference, "a build's rows differed and were repaired");
            }
        }
        Ok(())
    }
}

/// Leases of an agent that is gone: what it never started goes back, what it ran is lost.
pub(super) fn lost(leases: &[LeaseRow], reason: &str) -> Vec<Transition> {
    leases
        .iter()
        .map(|lease| {
            let event = match lease.phase {
                LeasePhase::Leased => Event::Return(lease.id),
                _ => Event::Expire(lease.id),
            };
            Transition::new(lease.build, lease.job, event).because(reason)
        })
        .collect()
}

struct Bury<'a> {
    dead: &'a Dead,
}

#[async_trait]
impl Work for Bury<'_> {
    /// How many leases ended with it; nothing where it was not dead after all.
    type Output = Option<usize>;

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<(Option<usize>, Effects)> {
        let SessionRow { id, agent, beat, .. } = self.dead.session;
        // A transaction that waited for long may come before heartbeats that waited as well.
        let waited = app.0.clock.elapsed().saturating_sub(self.dead.read_at);
        if waited > app.timing().sweep * GAP_SWEEPS || !tx.close_silent_session(id, beat).await? {
            return Ok((None, Effects::default()));
        }
        let mut leases = tx.open_leases(&[agent]).await?;
        leases.retain(|lease| lease.session == id);
        let transitions = lost(&leases, "the agent fell silent");
        let mut effects = apply(tx, &transitions, app.0.clock.now()).await?.effects;
        effects.agents.insert(agent);
        Ok((Some(leases.len()), effects))
    }
}

/// Transitions that nobody waits for.
struct Apply(Vec<Transition>);

#[async_trait]
impl Work for Apply {
    type Output = ();

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<((), Effects)> {
        Ok(((), apply(tx, &self.0, app.0.clock.now()).await?.effects))
    }
}

struct EndPause(AgentId);

#[async_trait]
impl Work for EndPause {
    type Output = ();

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<((), Effects)> {
        if let Some(mut row) = tx.lock_agents(&[self.0]).await?.pop() {
            row.admission = row.admission.at(app.0.clock.now());
            tx.save_agents(&[row]).await?;
        }
        let agents = BTreeSet::from([self.0]);
        Ok(((), Effects { agents, ..Effects::default() }))
    }
}

struct Repair(BuildId);

#[async_trait]
impl Work for Repair {
    type Output = Vec<String>;

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<(Vec<String>, Effects)> {
        let (found, applied) = repair(tx, self.0, app.0.clock.now()).await?;
        Ok((found, applied.effects))
    }
}
