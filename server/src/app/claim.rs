//! Claims: which jobs the agent of a session takes now.
//!
//! What can be read without locks is read before: the agent, the classes that fit it, the projects' use. The session is
//! locked, candidates are ranked by the core, and `jobs::apply` judges groups and limits again under their locks.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kiln_core::{
    Millis,
    agent::Agent,
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId, SessionId},
    job::Event,
    schedule::{Candidate, STICKY_MS, Usage, admits, rank},
    session::{Assignment, LeasePhase},
};

use super::{App, Result};
use crate::store::{self, AgentRow, LeaseRow, ProjectRow, Tx, jobs::Transition};

/// Leases of one claim: the agent with hundreds of slots comes back for more.
const MAX_LEASES: u32 = 64;

/// Until a claim that failed is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// A session that asks, with what is known of it without a lock.
#[derive(Debug)]
pub(super) struct Claim {
    session: SessionId,
    pub(super) agent: Agent,
    classes: Vec<ClassId>,
}

/// What a claim came to.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    pub(super) leases: Vec<LeaseRow>,
    /// Leases of the agent by backend, those of this claim among them. Nothing where the session is closed.
    busy: Option<BTreeMap<String, u32>>,
    /// It had room and saw what there is.
    looked: bool,
    /// There was more than it took.
    more: bool,
    /// Agents for which candidates are kept, and until when.
    kept: BTreeSet<AgentId>,
    kept_until: Option<Millis>,
}

/// A claim inside its transaction.
pub(super) struct Choice {
    /// Place of the command in its group.
    pub(super) at: usize,
    pub(super) leases: Vec<Transition>,
    pub(super) claimed: Claimed,
    asked: BTreeSet<LeaseId>,
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
        let Some(row) = self.0.store.agent(agent).await? else {
            self.0.dispatch.close(session);
            return Ok(vec![]);
        };
        let agent = as_agent(row, true, BTreeMap::new());
        let now = self.0.clock.now();
        self.0.dispatch.seen(session, &agent);
        if !admits(&agent, now) {
            self.0.dispatch.pass_on(token);
            return Ok(vec![]);
        }
        let classes = self.fitting(&agent).await?;
        if classes.is_empty() {
            return Ok(vec![]);
        }
        let claim = Claim { session, agent, classes: classes.clone() };
        let missed = self.0.dispatch.take_missed(&classes);
        let claimed = self.0.committer.claim(claim).await;
        if !claimed.as_ref().is_ok_and(|claimed| claimed.looked) {
            self.0.dispatch.put_missed(missed);
        }
        let claimed = claimed?;
        self.note(session, &classes, &claimed, now);
        self.assignments(&claimed.leases).await
    }

    /// Classes with claimable jobs that this agent can run.
    async fn fitting(&self, agent: &Agent) -> Result<Vec<ClassId>> {
        let mut fitting = vec![];
        for id in self.0.store.waiting_classes().await? {
            if let Some(class) = self.class(id).await?
                && class.fits(agent)
            {
                fitting.push(id);
            }
        }
        Ok(fitting)
    }

    fn note(&self, session: SessionId, classes: &[ClassId], claimed: &Claimed, now: Millis) {
        let dispatch = &self.0.dispatch;
        let Some(busy) = &claimed.busy else {
            dispatch.close(session);
            return;
        };
        let wait = claimed
            .kept_until
            .map(|end| Duration::from_millis(u64::try_from(end.saturating_sub(now)).unwrap_or(0)));
        dispatch.end_claim(session, busy.clone(), wait.map(|wait| self.0.clock.elapsed() + wait));
        dispatch.wake_agents(&claimed.kept);
        // Without progress, two idle sessions would wake each other for ever.
        if claimed.more && !claimed.leases.is_empty() {
            dispatch.wake_one(self, classes, now);
        }
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

/// What the claims of a group share: what one takes the next does not see.
struct Chooser<'a> {
    app: &'a App,
    usages: BTreeMap<ProjectId, Usage>,
    taken: BTreeSet<JobId>,
    room: Room,
    now: Millis,
}

/// Chooses for each claim of a group, one after the other.
pub(super) async fn choose(
    app: &App,
    tx: &mut dyn Tx,
    claims: &[(usize, &Claim)],
    projects: &[ProjectRow],
    now: Millis,
) -> store::Result<Vec<Choice>> {
    let mut claims = claims.to_vec();
    claims.sort_by_key(|(_, claim)| claim.session);
    let mut open = vec![];
    for (at, claim) in claims {
        let session = tx.lock_session(claim.session).await?;
        open.push((at, claim, session.is_some_and(|row| row.open && row.agent == claim.agent.id)));
    }
    let usages = projects.iter().map(|row| (row.id, usage(row))).collect();
    let mut chooser = Chooser { app, usages, taken: BTreeSet::new(), room: Room::default(), now };
    let mut choices = vec![];
    for (at, claim, open) in open {
        let mut choice =
            Choice { at, leases: vec![], claimed: Claimed::default(), asked: BTreeSet::new() };
        if open {
            let busy = busy(&tx.open_leases(claim.agent.id).await?);
            let agent = Agent { busy, ..claim.agent.clone() };
            chooser.choose(tx, claim, &agent, &mut choice).await?;
            choice.claimed.busy = Some(agent.busy);
        }
        choices.push(choice);
    }
    Ok(choices)
}

/// The chooser leaves a preferred agent only where waiting for it makes sense.
fn is_kept_for_another(candidate: &Candidate, agent: AgentId) -> bool {
    candidate.preferred.is_some_and(|preferred| preferred != agent)
}

fn usage(row: &ProjectRow) -> Usage {
    let room = match row.max_running {
        0 => u32::MAX,
        limit => limit.saturating_sub(row.running),
    };
    Usage { project: row.id, running: row.running, weight: row.weight, room }
}

impl Chooser<'_> {
    async fn choose(
        &mut self,
        tx: &mut dyn Tx,
        claim: &Claim,
        agent: &Agent,
        choice: &mut Choice,
    ) -> store::Result<()> {
        let free: u32 = agent.profile.backends.keys().map(|backend| agent.free(backend)).sum();
        let free = free.min(MAX_LEASES);
        if free == 0 {
            return Ok(());
        }
        choice.claimed.looked = true;
        let candidates = self.candidates(tx, claim, free, choice).await?;
        let projects: BTreeSet<ProjectId> =
            candidates.values().map(|(candidate, _)| candidate.project).collect();
        let usages: Vec<Usage> =
            projects.iter().filter_map(|id| self.usages.get(id)).copied().collect();
        let list: Vec<Candidate> =
            candidates.values().map(|(candidate, _)| candidate.clone()).collect();
        let order = rank(&list, &usages, agent, self.now);
        let order = &order[..order.len().min(free as usize)];
        let kept = list.iter().filter(|candidate| is_kept_for_another(candidate, agent.id)).count();
        choice.claimed.more = list.len() - kept > order.len();
        for (candidate, build) in order.iter().filter_map(|job| candidates.get(job)) {
            self.taken.insert(candidate.job);
            if let Some(usage) = self.usages.get_mut(&candidate.project) {
                usage.running += 1;
                usage.room = usage.room.saturating_sub(1);
            }
            let lease = lease(self.app, claim, candidate, *build, self.now);
            choice.asked.insert(lease.id);
            choice.leases.push(Transition {
                lease: Some(lease.clone()),
                ..Transition::new(*build, candidate.job, Event::Lease(lease.id))
            });
        }
        Ok(())
    }

    /// What no earlier claim of the group took, with a preferred agent only where waiting for it makes sense.
    async fn candidates(
        &mut self,
        tx: &mut dyn Tx,
        claim: &Claim,
        free: u32,
        choice: &mut Choice,
    ) -> store::Result<BTreeMap<JobId, (Candidate, BuildId)>> {
        let seen = u32::try_from(self.taken.len()).unwrap_or(u32::MAX);
        // One more than it takes tells whether there is more.
        let each = free.saturating_add(seen).saturating_add(1);
        let mut found = BTreeMap::new();
        for (mut candidate, build) in tx.candidates(&claim.classes, each, self.now).await? {
            if self.taken.contains(&candidate.job) {
                continue;
            }
            candidate.preferred =
                self.room.judge(self.app, &candidate, claim.agent.id, self.now).await?;
            if let Some(preferred) =
                candidate.preferred.filter(|_| is_kept_for_another(&candidate, claim.agent.id))
            {
                let until = candidate.queued_at.saturating_add(STICKY_MS);
                let kept_until = &mut choice.claimed.kept_until;
                *kept_until = Some(kept_until.map_or(until, |earlier| earlier.min(until)));
                choice.claimed.kept.insert(preferred);
            }
            found.insert(candidate.job, (candidate, build));
        }
        Ok(found)
    }
}

fn lease(app: &App, claim: &Claim, candidate: &Candidate, build: BuildId, now: Millis) -> LeaseRow {
    LeaseRow {
        id: LeaseId::from_uuid(app.0.clock.id()),
        job: candidate.job,
        build,
        project: candidate.project,
        agent: claim.agent.id,
        session: claim.session,
        backend: candidate.backend.clone(),
        attempt: 0,
        phase: LeasePhase::Leased,
        cancelling: false,
        given_at: now,
        started_at: None,
        ended_at: None,
        outcome: None,
        log_lengths: BTreeMap::new(),
    }
}

/// Tells each claim which of its leases were given.
pub(super) fn hand_out(choices: &mut [Choice], given: Vec<LeaseRow>) {
    for lease in given {
        let Some(choice) = choices.iter_mut().find(|choice| choice.asked.contains(&lease.id))
        else {
            continue;
        };
        if let Some(busy) = &mut choice.claimed.busy {
            *busy.entry(lease.backend.clone()).or_default() += 1;
        }
        choice.claimed.leases.push(lease);
    }
    for choice in choices {
        choice.claimed.more |= choice.claimed.leases.len() < choice.asked.len();
    }
}

/// Whether agents with warm caches have room, asked once a group.
#[derive(Default)]
struct Room {
    known: BTreeMap<(AgentId, String), bool>,
}

impl Room {
    /// The preferred agent, where keeping the job for it makes sense.
    async fn judge(
        &mut self,
        app: &App,
        candidate: &Candidate,
        claimer: AgentId,
        now: Millis,
    ) -> store::Result<Option<AgentId>> {
        let Some(preferred) = candidate.preferred else { return Ok(None) };
        if preferred == claimer {
            return Ok(Some(preferred));
        }
        if now.saturating_sub(candidate.queued_at) >= STICKY_MS {
            return Ok(None);
        }
        let key = (preferred, candidate.backend.clone());
        let has_room = match self.known.get(&key) {
            Some(known) => *known,
            None => app.has_room(preferred, &candidate.backend, now).await?,
        };
        self.known.insert(key, has_room);
        Ok(has_room.then_some(preferred))
    }
}

impl App {
    async fn has_room(&self, agent: AgentId, backend: &str, now: Millis) -> store::Result<bool> {
        if let Some(known) = self.0.dispatch.has_room(agent, backend, now) {
            return Ok(known);
        }
        let Some(row) = self.0.store.agent(agent).await? else { return Ok(false) };
        let grace = i64::try_from(self.0.timing.grace.as_millis()).unwrap_or(Millis::MAX);
        let online = now.saturating_sub(row.seen_at) < grace;
        let busy = busy(&self.0.store.open_leases(Some(agent)).await?);
        let agent = as_agent(row, online, busy);
        Ok(admits(&agent, now) && agent.free(backend) > 0)
    }
}
