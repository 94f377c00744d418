//! Who is woken when jobs become claimable.
//!
//! Each session of this replica waits in [`App::claimable`]. As many idle sessions as there are new jobs are woken,
//! the one with warm caches first; a claim that leaves something wakes the next; a slot that becomes free wakes its
//! own session. What no idle session could take is remembered for the next that comes to wait. Waits of a backoff are
//! timers of one task, which also hears the hints of other replicas. All of this can be lost: the sweep looks again.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kiln_core::{
    Millis,
    agent::{Admission, Agent, Load, Profile},
    id::{AgentId, ClassId, SessionId},
    schedule::admits,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::App;
use crate::{
    store::jobs::{Effects, Opening},
    wake::Topic,
};

/// Timers and affinities at most; what is beyond is found by the sweep.
const CAPACITY: usize = 10_000;
/// Between two looks at the rows because of hints: other replicas send one every few milliseconds.
const HINT_PAUSE: Duration = Duration::from_millis(20);
/// The sweep of a session of its own, should everything else fail.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Dispatch {
    state: Mutex<State>,
    /// There is an earlier timer than before.
    rearm: Notify,
    /// Something may be claimable that nobody announced.
    look: Notify,
}

#[derive(Debug, Default)]
struct State {
    streams: BTreeMap<SessionId, Stream>,
    by_agent: BTreeMap<AgentId, SessionId>,
    /// Classes of jobs for which no session was idle.
    missed: BTreeSet<ClassId>,
    /// When to look again, and for which class.
    timers: BinaryHeap<Reverse<(Duration, ClassId)>>,
    warm: BTreeMap<String, AgentId>,
}

#[derive(Debug)]
struct Stream {
    agent: Agent,
    notify: Arc<Notify>,
    /// It waits and was not woken yet.
    idle: bool,
    /// It was woken, or has never claimed: it is to claim before it waits.
    due: bool,
    /// What it was woken for.
    token: Option<ClassId>,
    /// When a candidate is kept no longer for another agent.
    alarm: Option<Duration>,
    /// The last heartbeat.
    heard: Duration,
}

impl Stream {
    fn fits(&self, app: &App, class: ClassId, now: Millis) -> bool {
        admits(&self.agent, now)
            && app
                .0
                .names
                .known_class(class)
                .is_none_or(|class| self.agent.free(&class.backend) > 0 && class.fits(&self.agent))
    }

    fn wake(&mut self, token: Option<ClassId>) {
        if self.idle {
            self.notify.notify_one();
        }
        self.idle = false;
        self.due = true;
        self.token = token.or(self.token);
    }
}

impl Dispatch {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds this lock; the state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session of this replica begins; an older one of its agent is over.
    pub(super) fn open(&self, session: SessionId, agent: Agent, now: Duration) {
        let mut state = self.lock();
        if let Some(old) = state.by_agent.insert(agent.id, session) {
            state.streams.remove(&old);
        }
        let stream = Stream {
            agent,
            notify: Arc::new(Notify::new()),
            idle: false,
            due: true,
            token: None,
            alarm: None,
            heard: now,
        };
        state.streams.insert(session, stream);
    }

    pub(super) fn close(&self, session: SessionId) {
        let mut state = self.lock();
        if let Some(stream) = state.streams.remove(&session) {
            if state.by_agent.get(&stream.agent.id) == Some(&session) {
                state.by_agent.remove(&stream.agent.id);
            }
            stream.notify.notify_one();
            state.missed.extend(stream.token);
        }
    }

    /// The agent is gone.
    pub(super) fn forget(&self, agent: AgentId) {
        let session = self.lock().by_agent.get(&agent).copied();
        if let Some(session) = session {
            self.close(session);
        }
    }

    pub(super) fn agent_of(&self, session: SessionId) -> Option<AgentId> {
        self.lock().streams.get(&session).map(|stream| stream.agent.id)
    }

    pub(super) fn heard(&self, session: SessionId, load: Load, now: Duration) {
        if let Some(stream) = self.lock().streams.get_mut(&session) {
            stream.heard = now;
            stream.agent.load = load;
        }
    }

    /// What the rows say of an agent; another replica may have changed it.
    pub(super) fn admitted(&self, agent: AgentId, admission: &Admission) {
        let mut state = self.lock();
        let State { streams, by_agent, .. } = &mut *state;
        let stream = by_agent.get(&agent).and_then(|session| streams.get_mut(session));
        if let Some(stream) = stream.filter(|stream| stream.agent.admission != *admission) {
            stream.agent.admission.clone_from(admission);
            stream.wake(None);
        }
    }

    /// How long ago this replica heard the session itself.
    pub(super) fn silence(&self, session: SessionId, now: Duration) -> Option<Duration> {
        self.lock().streams.get(&session).map(|stream| now.saturating_sub(stream.heard))
    }

    pub(super) fn profile(&self, agent: AgentId, profile: Profile) {
        self.change(agent, |known| known.profile = profile);
    }

    /// What is known of an agent changed in a way that may let it take jobs.
    pub(super) fn change(&self, agent: AgentId, change: impl FnOnce(&mut Agent)) {
        let mut state = self.lock();
        let Some(session) = state.by_agent.get(&agent).copied() else { return };
        if let Some(stream) = state.streams.get_mut(&session) {
            change(&mut stream.agent);
            stream.wake(None);
        }
    }

    /// Nothing where the agent has no session on this replica.
    pub(super) fn has_room(&self, agent: AgentId, backend: &str, now: Millis) -> Option<bool> {
        let state = self.lock();
        let stream = state.streams.get(state.by_agent.get(&agent)?)?;
        Some(admits(&stream.agent, now) && stream.agent.free(backend) > 0)
    }

    /// What the session was woken for is in the hands of its claim now.
    pub(super) fn begin_claim(&self, session: SessionId) -> Option<ClassId> {
        let mut state = self.lock();
        let stream = state.streams.get_mut(&session)?;
        stream.due = false;
        stream.alarm = None;
        stream.token.take()
    }

    /// A claim is about to look at what was missed of these classes.
    pub(super) fn take_missed(&self, classes: &[ClassId]) -> Vec<ClassId> {
        let mut state = self.lock();
        classes.iter().copied().filter(|class| state.missed.remove(class)).collect()
    }

    pub(super) fn put_missed(&self, classes: Vec<ClassId>) {
        self.lock().missed.extend(classes);
    }

    /// The agent as its row says.
    pub(super) fn seen(&self, session: SessionId, agent: &Agent) {
        if let Some(stream) = self.lock().streams.get_mut(&session) {
            stream.agent.admission.clone_from(&agent.admission);
            stream.agent.profile.clone_from(&agent.profile);
        }
    }

    pub(super) fn end_claim(
        &self,
        session: SessionId,
        busy: BTreeMap<String, u32>,
        alarm: Option<Duration>,
    ) {
        if let Some(stream) = self.lock().streams.get_mut(&session) {
            stream.agent.busy = busy;
            stream.alarm = alarm;
        }
    }

    /// It claims again at this time, if nothing wakes it before.
    pub(super) fn defer(&self, session: SessionId, until: Duration) {
        if let Some(stream) = self.lock().streams.get_mut(&session) {
            stream.alarm = Some(until);
        }
    }

    /// A session that was woken and does not claim lets another have its turn.
    pub(super) fn pass_on(&self, token: Option<ClassId>) {
        if let Some(class) = token {
            self.lock().missed.insert(class);
            self.look.notify_one();
        }
    }

    pub(super) fn wake_agents(&self, agents: &BTreeSet<AgentId>) {
        let mut state = self.lock();
        for agent in agents {
            let Some(session) = state.by_agent.get(agent).copied() else { continue };
            if let Some(stream) = state.streams.get_mut(&session).filter(|stream| stream.idle) {
                stream.wake(None);
            }
        }
    }

    /// One idle session that can run any of these classes.
    pub(super) fn wake_one(&self, app: &App, classes: &[ClassId], now: Millis) {
        let mut state = self.lock();
        let found = state.streams.values_mut().filter(|stream| stream.idle).find_map(|stream| {
            let class = classes.iter().find(|class| stream.fits(app, **class, now))?;
            Some((stream, *class))
        });
        match found {
            Some((stream, class)) => stream.wake(Some(class)),
            None => state.missed.extend(classes),
        }
    }

    /// Someone changed something that no event announces.
    pub(super) fn look_again(&self) {
        self.look.notify_one();
    }

    /// What a commit of this replica means for those who wait.
    pub(super) fn follow(&self, app: &App, effects: Effects) {
        let now = app.0.clock.now();
        let mut state = self.lock();
        for (affinity, agent) in effects.warm {
            if state.warm.len() >= CAPACITY {
                state.warm.clear();
            }
            state.warm.insert(affinity, agent);
        }
        for (agent, backend) in effects.freed {
            state.free(agent, &backend);
        }
        let mut ready: BTreeMap<ClassId, Vec<Opening>> = BTreeMap::new();
        for opening in effects.openings {
            if opening.not_before > now {
                let wait = u64::try_from(opening.not_before - now).unwrap_or_default();
                let at = app.0.clock.elapsed() + Duration::from_millis(wait);
                self.set_timer(&mut state, at, opening.class);
            } else {
                ready.entry(opening.class).or_default().push(opening);
            }
        }
        for (class, openings) in ready {
            state.offer(app, class, &openings, now);
        }
    }

    fn set_timer(&self, state: &mut State, at: Duration, class: ClassId) {
        let earliest = state.timers.peek().is_none_or(|Reverse((first, _))| at < *first);
        if state.timers.len() < CAPACITY {
            state.timers.push(Reverse((at, class)));
        }
        if earliest {
            self.rearm.notify_one();
        }
    }

    /// Classes whose wait is over, and how long the next one lasts.
    fn due(&self, now: Duration) -> (Vec<ClassId>, Option<Duration>) {
        let mut state = self.lock();
        let mut due = vec![];
        while let Some(Reverse((at, class))) = state.timers.peek().copied() {
            if at > now {
                return (due, Some(at.saturating_sub(now)));
            }
            state.timers.pop();
            due.push(class);
        }
        (due, None)
    }

    fn has_idle(&self) -> bool {
        self.lock().streams.values().any(|stream| stream.idle)
    }

    /// Forgets sessions that the rows say are closed.
    pub(super) fn retain(&self, open: &BTreeSet<SessionId>, known: &BTreeSet<SessionId>) {
        let gone: Vec<SessionId> = known.difference(open).copied().collect();
        for session in gone {
            self.close(session);
        }
    }

    pub(super) fn open_sessions(&self) -> usize {
        self.lock().streams.len()
    }

    pub(super) fn sessions(&self) -> BTreeSet<SessionId> {
        self.lock().streams.keys().copied().collect()
    }

    /// Ready to claim at once, or what to wait for and for how long.
    fn enter(&self, app: &App, session: SessionId) -> Option<(Arc<Notify>, Duration)> {
        let now = app.0.clock.now();
        let elapsed = app.0.clock.elapsed();
        let mut state = self.lock();
        let State { streams, missed, .. } = &mut *state;
        let Some(stream) = streams.get_mut(&session) else {
            return Some((Arc::new(Notify::new()), LONGEST_WAIT));
        };
        if stream.due {
            return None;
        }
        if let Some(class) = missed.iter().find(|class| stream.fits(app, **class, now)).copied() {
            missed.remove(&class);
            stream.token = Some(class);
            stream.due = true;
            return None;
        }
        stream.idle = true;
        let wait = stream.alarm.map_or(LONGEST_WAIT, |at| at.saturating_sub(elapsed));
        Some((Arc::clone(&stream.notify), wait.min(LONGEST_WAIT)))
    }

    /// When a session claims again by itself; zero where it was woken.
    #[cfg(test)]
    pub(super) fn next_claim(&self, session: SessionId) -> Option<Duration> {
        let state = self.lock();
        let stream = state.streams.get(&session)?;
        if stream.due { Some(Duration::ZERO) } else { stream.alarm }
    }

    fn leave(&self, session: SessionId) {
        if let Some(stream) = self.lock().streams.get_mut(&session) {
            stream.idle = false;
        }
    }
}

impl State {
    /// A slot became free. A session that had none left claims now; another one has taken what there was.
    fn free(&mut self, agent: AgentId, backend: &str) {
        let Some(session) = self.by_agent.get(&agent) else { return };
        let Some(stream) = self.streams.get_mut(session) else { return };
        let was_full = stream.agent.free(backend) == 0;
        if let Some(busy) = stream.agent.busy.get_mut(backend) {
            *busy = busy.saturating_sub(1);
        }
        if was_full {
            stream.wake(None);
        }
    }

    /// Wakes as many idle sessions as there are jobs of a class, the one with warm caches first, then by free slots.
    fn offer(&mut self, app: &App, class: ClassId, openings: &[Opening], now: Millis) {
        let preferred: BTreeSet<AgentId> = openings
            .iter()
            .filter_map(|opening| self.warm.get(&opening.affinity))
            .copied()
            .collect();
        let backend = app.0.names.known_class(class).map(|class| class.backend.clone());
        let mut idle: Vec<(bool, Reverse<u32>, SessionId)> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.idle && stream.fits(app, class, now))
            .map(|(id, stream)| {
                let free = backend.as_ref().map_or(1, |backend| stream.agent.free(backend));
                (!preferred.contains(&stream.agent.id), Reverse(free), *id)
            })
            .collect();
        idle.sort_unstable();
        let mut left = openings.len();
        for (_, Reverse(free), session) in idle {
            if left == 0 {
                return;
            }
            if let Some(stream) = self.streams.get_mut(&session) {
                stream.wake(Some(class));
                left = left.saturating_sub(free.max(1) as usize);
            }
        }
        if left > 0 {
            self.missed.insert(class);
        }
    }
}

/// A session that waits; gone before it was woken, it is idle no more.
struct Waiting<'a> {
    app: &'a App,
    session: SessionId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.app.0.dispatch.leave(self.session);
    }
}

impl App {
    /// Until something that this session could claim may be there: a wake, the end of a backoff or of a sticky wait, or the sweep.
    pub async fn claimable(&self, session: SessionId) {
        let Some((notify, wait)) = self.0.dispatch.enter(self, session) else { return };
        let _waiting = Waiting { app: self, session };
        // The end of the wait is one of the things waited for.
        let _ = tokio::time::timeout(wait, notify.notified()).await;
    }

    /// Looks at the rows for jobs that nobody announced.
    pub(super) fn look_again(&self) {
        self.0.dispatch.look_again();
    }

    /// Wakes one idle session for each class that has claimable jobs; what it leaves wakes the next.
    async fn look(&self) {
        if !self.0.dispatch.has_idle() {
            return;
        }
        let classes = match self.0.store.waiting_classes().await {
            Ok(classes) => classes,
            Err(error) => {
                tracing::warn!(%error, "the queue could not be read; the sweep looks again");
                return;
            }
        };
        for class in classes {
            // A class of another replica is loaded, so that the fitting session is found.
            if self.class(class).await.is_ok() {
                self.0.dispatch.wake_one(self, &[class], self.0.clock.now());
            }
        }
    }

    /// The earliest backoff that is not over, for timers that were lost.
    pub(super) async fn rearm(&self) -> crate::store::Result<()> {
        let now = self.0.clock.now();
        if let Some(at) = self.0.store.next_not_before(now).await? {
            let wait = Duration::from_millis(u64::try_from(at - now).unwrap_or_default());
            let at = self.0.clock.elapsed() + wait;
            let dispatch = &self.0.dispatch;
            let mut state = dispatch.lock();
            if state.timers.peek().is_none_or(|Reverse((first, _))| at < *first) {
                let any = ClassId::from_uuid(uuid::Uuid::nil());
                dispatch.set_timer(&mut state, at, any);
            }
        }
        Ok(())
    }
}

/// Timers and the hints of other replicas.
pub(super) async fn run(app: App, shutdown: CancellationToken) {
    let hints = app.subscribe(&[Topic::Queue]);
    let dispatch = &app.0.dispatch;
    loop {
        let (due, next) = dispatch.due(app.0.clock.elapsed());
        if !due.is_empty() {
            app.look().await;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(next.unwrap_or(LONGEST_WAIT)) => {}
            () = dispatch.rearm.notified() => {}
            () = dispatch.look.notified() => app.look().await,
            () = hints.changed() => {
                app.look().await;
                tokio::time::sleep(HINT_PAUSE).await;
            }
        }
    }
}
