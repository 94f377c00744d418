//! The loop of a session that is open.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kiln_core::{
    agent::{Load, Profile},
    id::{AgentId, LeaseId},
    session::{Assignment, Held, Input, LeaseFacts, LeasePhase, Record, Recorded, Say, Session},
};
use tokio::{sync::Notify, time::Instant};

use super::{
    Error, Frame, Parts, Word, Words,
    record::{lease_of, record},
};
use crate::{
    app::{self, Given, Hello, Welcome},
    wake::Subscription,
};

/// Records on their way at once: enough to fill a group commit, few enough to hold in memory.
const MAX_RECORDS: usize = 256;
/// Rest after a failed claim, or after an agent gave a lease back: the same job would come again at once.
const REST: Duration = Duration::from_secs(1);

/// A wait that is over so soon was none; after so many of them the session rests: its rows may say that it is closed.
const AT_ONCE: Duration = Duration::from_millis(2);
const MAX_SPINS: u32 = 8;

/// What the actor keeps of a Hello.
#[derive(Debug)]
pub(super) struct Greeting {
    slots: usize,
    /// Leases that have ended on the agent: the rows may have closed them, the agent still says how they ended.
    ended: BTreeSet<LeaseId>,
}

impl Greeting {
    pub(super) fn of(hello: &Hello) -> Self {
        let ended = hello.journal.iter().filter(|(_, held)| *held == Held::Finished);
        Self { slots: slots(&hello.profile), ended: ended.map(|(lease, _)| *lease).collect() }
    }
}

fn slots(profile: &Profile) -> usize {
    profile.backends.values().map(|offer| offer.slots as usize).sum()
}

/// Something that was under way and is done.
enum Done {
    Recorded(LeaseId, app::Result<Recorded>),
    Beat(app::Result<bool>),
    /// It is time to claim; it was so at once.
    Claimable(bool),
    Claimed(app::Result<Vec<Assignment>>),
    /// What the rows say, and what was known when they were asked.
    Facts(Known, app::Result<(Vec<LeaseFacts>, bool)>),
    Fetched(LeaseId, app::Result<Box<Given>>),
}

/// What a session knows of its leases before it reads the rows.
#[derive(Debug)]
struct Known {
    leases: BTreeSet<LeaseId>,
    /// Those of which the agent has said all that it wants to say.
    quiet: Vec<LeaseId>,
    /// Claims that were made; nothing where one is under way.
    claims: Option<u64>,
}

/// How far the next claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    Idle,
    /// Until something may be there.
    Waiting,
    /// After a claim that failed, or a lease that came back.
    Resting,
    Running,
}

/// What is to be started when it is not under way.
#[derive(Debug, Default)]
struct Wanted {
    claim: bool,
    rest: bool,
    facts: bool,
}

pub(super) struct Actor {
    parts: Parts,
    agent: AgentId,
    machine: Session,
    slots: usize,
    ended: BTreeSet<LeaseId>,
    draining: bool,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Leases with a record under way, and what is to be recorded after it.
    records: BTreeMap<LeaseId, VecDeque<Record>>,
    recording: usize,
    /// The last heartbeat that is not under way.
    beat: Option<(Load, Option<Profile>)>,
    beating: bool,
    claim: Claim,
    claims: u64,
    wanted: Wanted,
    /// Empty claims that nothing was waited for.
    spins: u32,
    /// Ends the wait for a claim.
    poke: Arc<Notify>,
    /// The rows are being read.
    checking: bool,
    /// Contents of Assigns that were not said yet.
    fresh: HashMap<LeaseId, Given>,
    /// Leases whose Assign was fetched and is in `fresh` now.
    again: BTreeSet<LeaseId>,
    heard: Instant,
}

impl Actor {
    pub(super) fn new(parts: Parts, agent: AgentId, welcome: &Welcome, hello: Greeting) -> Self {
        let mut actor = Self {
            parts,
            agent,
            machine: Session::open(welcome.session, &welcome.reconciled),
            slots: hello.slots,
            ended: hello.ended,
            draining: false,
            work: FuturesUnordered::new(),
            records: BTreeMap::new(),
            recording: 0,
            beat: None,
            beating: false,
            claim: Claim::Idle,
            claims: 0,
            spins: 0,
            wanted: Wanted { claim: true, ..Wanted::default() },
            poke: Arc::new(Notify::new()),
            checking: false,
            fresh: HashMap::new(),
            again: BTreeSet::new(),
            heard: Instant::now(),
        };
        actor.drain(welcome.draining);
        actor
    }

    pub(super) async fn run(
        mut self,
        frames: &mut (impl Stream<Item = Result<Frame, Error>> + Send + Unpin),
        words: &Words,
        hints: Subscription,
    ) -> Result<(), Error> {
        let first = Instant::now() + self.parts.app.until_sweep();
        let mut sweep = tokio::time::interval_at(first, self.parts.app.timing().sweep);
        loop {
            self.begin();
            tokio::select! {
                frame = frames.next(), if self.recording < MAX_RECORDS => match frame {
                    Some(frame) => self.hear(frame?)?,
                    None => return Ok(()),
                },
                Some(done) = self.work.next() => self.finish(done)?,
                () = hints.changed() => {
                    self.wanted.facts = true;
                    self.claim_soon();
                }
                permit = words.reserve(), if self.machine.speaks() || !self.again.is_empty() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    let batch = self.draw();
                    if !batch.is_empty() {
                        permit.send(Ok(batch));
                    }
                }
                _ = sweep.tick() => {
                    self.wanted.facts = true;
                    if self.heard.elapsed() > self.parts.app.timing().grace {
                        return Err(Error::Closed);
                    }
                }
            }
        }
    }

    /// Starts what is wanted and not under way.
    fn begin(&mut self) {
        let (app, session) = (self.parts.app.clone(), self.machine.id());
        if !self.beating
            && let Some((load, profile)) = self.beat.take()
        {
            self.beating = true;
            let (app, agent) = (app.clone(), self.agent);
            self.work.push(
                async move {
                    if let Some(profile) = profile
                        && let Err(error) = app.update_profile(agent, profile).await
                    {
                        return Done::Beat(Err(error));
                    }
                    Done::Beat(app.beat(session, load).await)
                }
                .boxed(),
            );
        }
        if self.wanted.facts && !self.checking {
            (self.wanted.facts, self.checking) = (false, true);
            let known = Known {
                leases: self.machine.leases().collect(),
                quiet: self.machine.leases().filter(|lease| self.is_quiet(*lease)).collect(),
                claims: self.claims_made(),
            };
            let (app, agent) = (app, self.agent);
            self.work.push(async move { Done::Facts(known, app.facts(agent).await) }.boxed());
        }
        if self.claim == Claim::Idle && !self.draining && self.machine.leases().count() < self.slots
        {
            self.begin_claim();
        }
    }

    fn begin_claim(&mut self) {
        let (app, session) = (self.parts.app.clone(), self.machine.id());
        if std::mem::take(&mut self.wanted.rest) {
            self.claim = Claim::Resting;
            self.work.push(tokio::time::sleep(REST).map(|()| Done::Claimable(false)).boxed());
        } else if std::mem::take(&mut self.wanted.claim) {
            self.claim = Claim::Running;
            self.claims += 1;
            self.work.push(async move { Done::Claimed(app.claim(session).await) }.boxed());
        } else {
            self.claim = Claim::Waiting;
            let poke = Arc::clone(&self.poke);
            let wait = async move {
                let began = Instant::now();
                tokio::select! {
                    () = app.claimable(session) => {}
                    () = poke.notified() => {}
                }
                Done::Claimable(began.elapsed() < AT_ONCE)
            };
            self.work.push(wait.boxed());
        }
    }

    fn claims_made(&self) -> Option<u64> {
        (self.claim != Claim::Running).then_some(self.claims)
    }

    fn claim_soon(&mut self) {
        self.wanted.claim = true;
        if self.claim == Claim::Waiting {
            self.poke.notify_one();
        }
    }

    /// Nothing that its agent said of the lease is under way.
    fn is_quiet(&self, lease: LeaseId) -> bool {
        !self.records.contains_key(&lease) && !self.ended.contains(&lease)
    }

    fn hear(&mut self, frame: Frame) -> Result<(), Error> {
        self.heard = Instant::now();
        let input = match frame {
            Frame::Hello { .. } => return Err(Error::frame("hello", "is the first frame only")),
            Frame::Heartbeat { load, profile } => {
                if let Some(profile) = &profile {
                    self.slots = slots(profile);
                }
                let earlier = self.beat.take().and_then(|(_, profile)| profile);
                self.beat = Some((load, profile.or(earlier)));
                return Ok(());
            }
            Frame::Started(lease) => Input::Started(lease),
            Frame::Refused(lease, reason) => Input::Refused(lease, reason),
            Frame::Finished(lease, report) => Input::Finished(lease, report),
        };
        if let Some(record) = self.machine.apply(input) {
            self.recording += 1;
            let lease = lease_of(&record);
            if let Some(queue) = self.records.get_mut(&lease) {
                queue.push_back(record);
            } else {
                self.records.insert(lease, VecDeque::new());
                self.record(lease, record);
            }
        }
        Ok(())
    }

    fn record(&mut self, lease: LeaseId, what: Record) {
        let Parts { app, files, .. } = self.parts.clone();
        let done = record(app, files, self.machine.id(), what);
        self.work.push(done.map(move |result| Done::Recorded(lease, result)).boxed());
    }

    fn finish(&mut self, done: Done) -> Result<(), Error> {
        match done {
            Done::Recorded(lease, result) => self.recorded(lease, result?),
            Done::Beat(result) => {
                self.beating = false;
                match result {
                    // Only a heartbeat that is in the rows is answered: others may judge by the rows.
                    Ok(true) => {
                        self.machine.apply(Input::Heartbeat);
                    }
                    Ok(false) => return Err(Error::Closed),
                    Err(error) => self.complain("a heartbeat is not recorded", &error),
                }
            }
            Done::Claimable(at_once) => self.claimable(at_once),
            Done::Claimed(result) => self.claimed(result),
            Done::Facts(known, result) => {
                self.checking = false;
                match result {
                    Err(error @ app::Error::Evicted) => return Err(error.into()),
                    Ok((facts, draining)) => self.compare(&known, &facts, draining),
                    Err(error) => self.complain("the rows of an agent can't be read", &error),
                }
            }
            Done::Fetched(lease, result) => match result {
                Ok(given) if self.holds(lease) => {
                    self.fresh.insert(lease, *given);
                    self.again.insert(lease);
                }
                Ok(_) | Err(app::Error::NotFound { .. }) => self.wanted.facts = true,
                Err(error) => self.complain("a lease can't be given again", &error),
            },
        }
        Ok(())
    }

    fn complain(&self, what: &str, error: &app::Error) {
        tracing::warn!(agent = %self.agent, session = %self.machine.id(), %error, "{what}");
    }

    fn holds(&self, lease: LeaseId) -> bool {
        self.machine.leases().any(|held| held == lease)
    }

    fn recorded(&mut self, lease: LeaseId, recorded: Recorded) {
        self.recording -= 1;
        self.machine.apply(Input::Recorded(lease, recorded));
        if recorded != Recorded::Started {
            self.ended.remove(&lease);
            self.fresh.remove(&lease);
            self.wanted.rest |= recorded == Recorded::Returned;
            self.claim_soon();
        }
        match self.records.get_mut(&lease).and_then(VecDeque::pop_front) {
            Some(next) => self.record(lease, next),
            None => {
                self.records.remove(&lease);
            }
        }
    }

    fn claimable(&mut self, at_once: bool) {
        (self.claim, self.wanted.claim) = (Claim::Idle, true);
        self.spins = if at_once { self.spins + 1 } else { 0 };
        if self.spins > MAX_SPINS {
            self.spins = 0;
            self.wanted.rest = true;
        }
    }

    fn claimed(&mut self, result: app::Result<Vec<Assignment>>) {
        self.claim = Claim::Idle;
        match result {
            Ok(given) if given.is_empty() => {}
            Ok(given) => {
                self.spins = 0;
                self.wanted.claim = true;
                self.machine.apply(Input::Given(given.iter().map(|given| given.lease).collect()));
                // What has secrets is fetched, with them, when it is said.
                let plain = given.into_iter().filter(|given| given.spec.secrets.is_empty());
                let plain = plain.map(|assignment| Given { assignment, secrets: vec![] });
                self.fresh.extend(plain.map(|given| (given.assignment.lease, given)));
            }
            Err(error) => {
                self.complain("a claim failed", &error);
                self.wanted.rest = true;
            }
        }
    }

    /// Compares what the machine knew when the rows were read with what they say.
    fn compare(&mut self, known: &Known, facts: &[LeaseFacts], draining: bool) {
        self.take_up(known, facts);
        for facts in facts.iter().filter(|facts| facts.cancelling) {
            self.machine.apply(Input::Cancelling(facts.lease));
        }
        let open: BTreeSet<LeaseId> = facts.iter().map(|facts| facts.lease).collect();
        for &lease in known.quiet.iter().filter(|lease| !open.contains(lease)) {
            if self.is_quiet(lease) && self.holds(lease) {
                self.fresh.remove(&lease);
                self.machine.apply(Input::Voided(lease));
            }
        }
        self.drain(draining);
    }

    /// A claim whose answer was lost with a connection left leases in the rows that nobody would ever hear of.
    fn take_up(&mut self, known: &Known, facts: &[LeaseFacts]) {
        if known.claims.is_none() || known.claims != self.claims_made() {
            return;
        }
        let unheard = facts.iter().filter(|facts| facts.phase == LeasePhase::Leased);
        for lease in unheard.map(|facts| facts.lease) {
            if !known.leases.contains(&lease) && !self.holds(lease) && self.is_quiet(lease) {
                tracing::info!(agent = %self.agent, %lease, "the claim of a lease was not answered; it is given now");
                self.machine.apply(Input::Given(vec![lease]));
            }
        }
    }

    fn drain(&mut self, draining: bool) {
        if draining != self.draining {
            self.draining = draining;
            self.machine.apply(if draining { Input::Drain } else { Input::Undrain });
            self.claim_soon();
        }
    }

    /// What is to be said now.
    fn draw(&mut self) -> Vec<Word> {
        let mut words = vec![];
        for say in self.machine.take() {
            words.extend(match say {
                Say::Ack(lease) => Some(Word::Ack(lease)),
                Say::Abandon(lease) => Some(Word::Abandon(lease)),
                Say::Revoke(lease) => Some(Word::Revoke(lease)),
                Say::Assign(lease) => self.assign(lease),
                Say::Drain => Some(Word::Drain),
                Say::Beat => Some(Word::Beat),
            });
        }
        for lease in std::mem::take(&mut self.again) {
            if self.holds(lease)
                && let Some(given) = self.fresh.remove(&lease)
            {
                words.push(Word::Assign(self.machine.id(), Box::new(given)));
            }
        }
        words
    }

    /// The Assign of a lease; where its content is not at hand, or was said before, it is read first.
    fn assign(&mut self, lease: LeaseId) -> Option<Word> {
        if let Some(given) = self.fresh.remove(&lease) {
            return Some(Word::Assign(self.machine.id(), Box::new(given)));
        }
        let app = self.parts.app.clone();
        self.work.push(
            async move { Done::Fetched(lease, app.given(lease).await.map(Box::new)) }.boxed(),
        );
        None
    }
}
