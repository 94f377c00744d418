//! The claims of one group: judged together, with as many statements as one of them would cost.
//!
//! What can be read without locks is read before: agents, classes, the projects' use. Then the sessions are locked, the
//! candidates of all who can run the same classes are read once, the core ranks what is left for one after the other,
//! and `jobs::apply` judges groups and limits again under their locks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kiln_core::{
    Millis,
    agent::Agent,
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId},
    job::Event,
    schedule::{Candidate, Class, STICKY_MS, Usage, admits, rank},
    session::LeasePhase,
};

use super::{Claim, Claimed, Standing, as_agent, busy};
use crate::{
    app::{App, assign::Contents},
    store::{self, LeaseRow, ProjectRow, Tx, jobs::Transition},
};

/// Leases of one claim: the agent with hundreds of slots comes back for more.
const MAX_LEASES: u32 = 64;

/// Who asks, and what it gets.
struct Asker {
    /// Place of the command in its group.
    at: usize,
    claim: Claim,
    agent: Option<Agent>,
    /// What it saw and could have taken.
    seen: Vec<JobId>,
    claimed: Claimed,
}

impl Asker {
    /// Nothing waits, whatever it could run.
    fn idle(at: usize, claim: Claim) -> Self {
        let claimed = Claimed { standing: Standing::Idle, ..Claimed::default() };
        Self { at, claim, agent: None, seen: vec![], claimed }
    }

    fn free(&self) -> u32 {
        let Some(agent) = &self.agent else { return 0 };
        let free = agent.profile.backends.keys().map(|backend| agent.free(backend));
        free.sum::<u32>().min(MAX_LEASES)
    }

    fn is_open(&self) -> bool {
        matches!(self.claimed.standing, Standing::Open(_))
    }
}

/// Candidates of some classes: with the agent that has their caches warm.
type Pool = Vec<(Candidate, BuildId)>;

/// The claims of a group, by session.
pub(in crate::app) struct Round<'a> {
    app: &'a App,
    now: Millis,
    askers: Vec<Asker>,
    projects: BTreeMap<ProjectId, ProjectRow>,
    usages: BTreeMap<ProjectId, Usage>,
    /// What was missed of the classes that are looked for, and those that somebody had room to look for.
    missed: Vec<ClassId>,
    looked: BTreeSet<ClassId>,
    taken: BTreeSet<JobId>,
    given: Vec<LeaseRow>,
    /// Which asker wants which lease.
    asked: BTreeMap<LeaseId, usize>,
    room: Room,
}

impl<'a> Round<'a> {
    /// Reads what the claims are judged by.
    pub(in crate::app) async fn open(
        app: &'a App,
        claims: &[(usize, Claim)],
        now: Millis,
    ) -> store::Result<Self> {
        let mut round = Self {
            app,
            now,
            askers: vec![],
            projects: BTreeMap::new(),
            usages: BTreeMap::new(),
            missed: vec![],
            looked: BTreeSet::new(),
            taken: BTreeSet::new(),
            given: vec![],
            asked: BTreeMap::new(),
            room: Room::default(),
        };
        if claims.is_empty() {
            return Ok(round);
        }
        let ids: Vec<AgentId> = claims.iter().map(|(_, claim)| claim.agent).collect();
        let store = &app.0.store;
        let waiting = store.waiting_classes().await?;
        if waiting.is_empty() {
            let idle = |&(at, claim): &(usize, Claim)| Asker::idle(at, claim);
            round.askers = claims.iter().map(idle).collect();
            return Ok(round);
        }
        let (agents, projects) = tokio::try_join!(store.agents_of(&ids), store.projects())?;
        let mut classes = vec![];
        for id in waiting {
            classes.extend(app.class(id).await?.map(|class| (id, class)));
        }
        round.usages = projects.iter().map(|row| (row.id, usage(row))).collect();
        round.projects = projects.into_iter().map(|row| (row.id, row)).collect();
        let agents: BTreeMap<AgentId, Agent> =
            agents.into_iter().map(|row| (row.id, as_agent(row, true, BTreeMap::new()))).collect();
        for &(at, claim) in claims {
            let agent = agents.get(&claim.agent).cloned();
            round.askers.push(round.admit(at, claim, agent, &classes));
        }
        round.askers.sort_by_key(|asker| asker.claim.session);
        let wanted = round.askers.iter().flat_map(|asker| &asker.claimed.classes);
        let wanted: BTreeSet<ClassId> = wanted.copied().collect();
        round.missed = app.0.dispatch.take_missed(&wanted.into_iter().collect::<Vec<_>>());
        Ok(round)
    }

    /// How the asker stands before any lock.
    fn admit(
        &self,
        at: usize,
        claim: Claim,
        agent: Option<Agent>,
        waiting: &[(ClassId, Arc<Class>)],
    ) -> Asker {
        let mut claimed = Claimed::default();
        if let Some(agent) = &agent {
            self.app.0.dispatch.seen(claim.session, agent);
            claimed.standing = Standing::Barred;
            if admits(agent, self.now) {
                claimed.standing = Standing::Idle;
                let fitting = waiting.iter().filter(|(_, class)| class.fits(agent));
                claimed.classes = fitting.map(|(id, _)| *id).collect();
            }
        }
        Asker { at, claim, agent, seen: vec![], claimed }
    }

    /// Nobody asks for something that waits.
    pub(in crate::app) fn is_idle(&self) -> bool {
        self.askers.iter().all(|asker| asker.claimed.classes.is_empty())
    }

    /// Chooses for each asker, one after the other.
    pub(in crate::app) async fn choose(
        &mut self,
        tx: &mut dyn Tx,
    ) -> store::Result<Vec<Transition>> {
        if self.is_idle() {
            return Ok(vec![]);
        }
        self.lock(tx).await?;
        let mut alike: BTreeMap<Vec<ClassId>, Vec<usize>> = BTreeMap::new();
        for (index, asker) in self.askers.iter().enumerate() {
            if asker.is_open() && asker.free() > 0 {
                alike.entry(asker.claimed.classes.clone()).or_default().push(index);
            }
        }
        let mut leases = vec![];
        for (classes, members) in alike {
            let free: u32 = members.iter().map(|index| self.askers[*index].free()).sum();
            let taken = u32::try_from(self.taken.len()).unwrap_or(u32::MAX);
            // One more than they take tells whether there is more.
            let each = free.saturating_add(taken).saturating_add(1);
            let pool = tx.candidates(&classes, each, self.now).await?;
            for index in members {
                leases.extend(self.take(index, &pool).await?);
            }
            self.looked.extend(classes);
        }
        for asker in &mut self.askers {
            asker.claimed.more = asker.seen.iter().any(|job| !self.taken.contains(job));
        }
        Ok(leases)
    }

    /// Locks the sessions of those who have something to look for, and counts what their agents hold.
    async fn lock(&mut self, tx: &mut dyn Tx) -> store::Result<()> {
        let eager = self.askers.iter().filter(|asker| !asker.claimed.classes.is_empty());
        let (sessions, agents): (Vec<_>, Vec<_>) =
            eager.map(|asker| (asker.claim.session, asker.claim.agent)).unzip();
        let sessions = tx.lock_sessions(&sessions).await?;
        let held = tx.busy(&agents).await?;
        for asker in &mut self.askers {
            if asker.claimed.classes.is_empty() {
                continue;
            }
            let Claim { session, agent } = asker.claim;
            let open =
                sessions.iter().any(|row| row.id == session && row.open && row.agent == agent);
            asker.claimed.standing = Standing::Closed;
            if let Some(agent) = asker.agent.as_mut().filter(|_| open) {
                agent.busy = held.get(&agent.id).cloned().unwrap_or_default();
                asker.claimed.standing = Standing::Open(agent.busy.clone());
            }
        }
        Ok(())
    }

    /// What one asker takes of what the earlier ones left.
    async fn take(&mut self, index: usize, pool: &Pool) -> store::Result<Vec<Transition>> {
        let candidates = self.judge(index, pool).await?;
        let asker = &self.askers[index];
        let Some(agent) = &asker.agent else { return Ok(vec![]) };
        let projects: BTreeSet<ProjectId> =
            candidates.iter().map(|(candidate, _)| candidate.project).collect();
        let usages: Vec<Usage> =
            projects.iter().filter_map(|id| self.usages.get(id)).copied().collect();
        let list: Vec<Candidate> = candidates.iter().map(|(found, _)| found.clone()).collect();
        let order = rank(&list, &usages, agent, self.now);
        let candidates: BTreeMap<JobId, (Candidate, BuildId)> =
            candidates.into_iter().map(|found| (found.0.job, found)).collect();
        let claim = asker.claim;
        let mut leases = vec![];
        for job in order.iter().take(asker.free() as usize) {
            let Some((candidate, build)) = candidates.get(job) else { continue };
            self.taken.insert(candidate.job);
            if let Some(usage) = self.usages.get_mut(&candidate.project) {
                usage.running += 1;
                usage.room = usage.room.saturating_sub(1);
            }
            let lease = lease(self.app, claim, candidate, *build, self.now);
            self.asked.insert(lease.id, index);
            leases.push(Transition {
                lease: Some(lease.clone()),
                ..Transition::new(*build, candidate.job, Event::Lease(lease.id))
            });
        }
        Ok(leases)
    }

    /// What is left, with a preferred agent only where waiting for it makes sense.
    async fn judge(&mut self, index: usize, pool: &Pool) -> store::Result<Pool> {
        let asker = &mut self.askers[index];
        let claimer = asker.claim.agent;
        let mut found = vec![];
        for (candidate, build) in pool.iter().filter(|(found, _)| !self.taken.contains(&found.job))
        {
            let preferred = self.room.judge(self.app, candidate, claimer, self.now).await?;
            match preferred.filter(|preferred| *preferred != claimer) {
                Some(other) => {
                    let until = candidate.queued_at.saturating_add(STICKY_MS);
                    let kept_until = &mut asker.claimed.kept_until;
                    *kept_until = Some(kept_until.map_or(until, |earlier| earlier.min(until)));
                    asker.claimed.kept.insert(other);
                }
                None => asker.seen.push(candidate.job),
            }
            found.push((Candidate { preferred, ..candidate.clone() }, *build));
        }
        Ok(found)
    }

    /// Fills in what was given, with all that an agent needs to run it.
    pub(in crate::app) fn hand_out(&mut self, given: Vec<LeaseRow>, mut contents: Contents) {
        for lease in &given {
            let Some(asker) = self.asked.remove(&lease.id) else { continue };
            let claimed = &mut self.askers[asker].claimed;
            if let Standing::Open(busy) = &mut claimed.standing {
                *busy.entry(lease.backend.clone()).or_default() += 1;
            }
            let project = self.projects.get(&lease.project).map(|row| row.name.as_str());
            claimed.assignments.extend(contents.assignment(lease, project.unwrap_or_default()));
        }
        // What was asked for and refused is still there.
        for asker in self.asked.values() {
            self.askers[*asker].claimed.more = true;
        }
        self.given = given;
    }

    /// Ends the round. `committed`: what was handed out counts, and what was looked for is missed no more.
    pub(in crate::app) fn close(self, committed: bool) -> Vec<(usize, Claimed)> {
        let Self { app, mut missed, looked, given, askers, .. } = self;
        if committed {
            missed.retain(|class| !looked.contains(class));
            for lease in &given {
                app.0.names.learn_lease(lease);
            }
        }
        app.0.dispatch.put_missed(missed);
        askers.into_iter().map(|asker| (asker.at, asker.claimed)).collect()
    }
}

fn usage(row: &ProjectRow) -> Usage {
    let room = match row.max_running {
        0 => u32::MAX,
        limit => limit.saturating_sub(row.running),
    };
    Usage { project: row.id, running: row.running, weight: row.weight, room }
}

fn lease(app: &App, claim: Claim, candidate: &Candidate, build: BuildId, now: Millis) -> LeaseRow {
    LeaseRow {
        id: LeaseId::from_uuid(app.0.clock.id()),
        job: candidate.job,
        build,
        project: candidate.project,
        agent: claim.agent,
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

/// Whether agents with warm caches have room, asked once a round.
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
        let grace = i64::try_from(self.timing().grace.as_millis()).unwrap_or(Millis::MAX);
        let online = now.saturating_sub(row.seen_at) < grace;
        let busy = busy(&self.0.store.open_leases(Some(&[agent])).await?);
        let agent = as_agent(row, online, busy);
        Ok(admits(&agent, now) && agent.free(backend) > 0)
    }
}
