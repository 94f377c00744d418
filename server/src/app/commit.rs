//! Grouped commits: whatever waits shares one transaction, and is answered after its commit.
//!
//! A committer takes all that waits at once, so that a lone command is committed without delay. A group that fails is
//! done again one by one; a command that loses against others three times goes to the head of the next group. A loss
//! is never an error to the caller, a database that fails is.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::OnceLock,
};

use kiln_core::{id::JobId, session::Recorded};
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    App, Error, Result,
    claim::{Claim, Claimed, round::Round},
    sessions::{self, Said},
    submit::{self, Inserted, NewBuild, Submitted},
};
use crate::store::{self, jobs};

/// Commands of one group.
const GROUP: usize = 500;
/// Jobs of the submissions of one group: what is inserted within about a tenth of a second.
const GROUP_JOBS: usize = 1_000;
/// Claims of one group: as many leases as a group may have new jobs.
const GROUP_CLAIMS: usize = 16;
/// Commands that wait for one committer, before callers wait.
const QUEUE: usize = 4_096;
const LOSSES: u32 = 3;

/// What is asked of a committer.
#[derive(Debug)]
pub(super) enum Command {
    Submit(Box<NewBuild>),
    Record(Said),
    Claim(Claim),
}

#[derive(Debug)]
enum Answer {
    Submitted(Submitted),
    Recorded(Recorded),
    Claimed(Claimed),
}

#[derive(Debug)]
struct Ticket {
    command: Command,
    answer: oneshot::Sender<Result<Answer>>,
    losses: u32,
}

/// The queues of the committers.
#[derive(Debug, Default)]
pub(super) struct Committer {
    lanes: OnceLock<Lanes>,
}

#[derive(Debug)]
struct Lanes {
    /// What only inserts: it waits for no row of another, where the database takes writers side by side.
    submits: Option<mpsc::Sender<Ticket>>,
    others: Vec<mpsc::Sender<Ticket>>,
}

impl Committer {
    pub(super) fn start(
        &self,
        app: &App,
        tracker: &TaskTracker,
        shutdown: &CancellationToken,
        lanes: usize,
    ) {
        let mut receivers = vec![];
        self.lanes.get_or_init(|| {
            let mut lane = || {
                let (sender, receiver) = mpsc::channel(QUEUE);
                receivers.push(receiver);
                sender
            };
            let submits = app.0.store.writes_side_by_side().then(&mut lane);
            Lanes { submits, others: (0..lanes).map(|_| lane()).collect() }
        });
        for receiver in receivers {
            tracker.spawn(run(app.clone(), receiver, shutdown.clone()));
        }
    }

    /// Refused where the queue is full: a submitter can come back, an agent's word can't be lost.
    pub(super) async fn submit(&self, command: Command) -> Result<Submitted> {
        let (ticket, answer) = ticket(command);
        self.lane(&ticket.command)?.try_send(ticket).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Busy("too many submissions; try again"),
            mpsc::error::TrySendError::Closed(_) => STOPPING,
        })?;
        match answer.await.map_err(|_| STOPPING)?? {
            Answer::Submitted(submitted) => Ok(submitted),
            _ => Err(STOPPING),
        }
    }

    pub(super) async fn record(&self, said: Said) -> Result<Recorded> {
        match self.ask(Command::Record(said)).await? {
            Answer::Recorded(recorded) => Ok(recorded),
            _ => Err(STOPPING),
        }
    }

    pub(super) async fn claim(&self, claim: Claim) -> Result<Claimed> {
        match self.ask(Command::Claim(claim)).await? {
            Answer::Claimed(claimed) => Ok(claimed),
            _ => Err(STOPPING),
        }
    }

    async fn ask(&self, command: Command) -> Result<Answer> {
        let (ticket, answer) = ticket(command);
        let lane = self.lane(&ticket.command)?;
        lane.send(ticket).await.map_err(|_| STOPPING)?;
        answer.await.map_err(|_| STOPPING)?
    }

    /// All that is said of one build waits in one queue, so that two committers seldom want the same rows.
    fn lane(&self, command: &Command) -> Result<&mpsc::Sender<Ticket>> {
        let lanes = self.lanes.get().ok_or(Error::Busy("the server is starting"))?;
        if let (Command::Submit(_), Some(lane)) = (command, &lanes.submits) {
            return Ok(lane);
        }
        let lanes = &lanes.others;
        let mut hash = DefaultHasher::new();
        match command {
            Command::Submit(new) => new.build.id.hash(&mut hash),
            Command::Record(said) => said.build.hash(&mut hash),
            Command::Claim(claim) => claim.agent.hash(&mut hash),
        }
        let lane = usize::try_from(hash.finish() % lanes.len() as u64).unwrap_or_default();
        lanes.get(lane).ok_or(STOPPING)
    }
}

const STOPPING: Error = Error::Busy("the server is stopping");

fn ticket(command: Command) -> (Ticket, oneshot::Receiver<Result<Answer>>) {
    let (answer, answered) = oneshot::channel();
    (Ticket { command, answer, losses: 0 }, answered)
}

async fn run(app: App, mut queue: mpsc::Receiver<Ticket>, shutdown: CancellationToken) {
    let mut waiting: VecDeque<Ticket> = VecDeque::new();
    let mut stopping = false;
    loop {
        if waiting.is_empty() {
            let mut taken = Vec::new();
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if !stopping => {
                    // What waits already is still answered.
                    queue.close();
                    stopping = true;
                    continue;
                }
                count = queue.recv_many(&mut taken, GROUP) => {
                    if count == 0 {
                        return;
                    }
                }
            }
            waiting.extend(taken);
        }
        while waiting.len() < GROUP
            && let Ok(ticket) = queue.try_recv()
        {
            waiting.push_back(ticket);
        }
        let losers = commit(&app, take_group(&mut waiting)).await;
        for loser in losers.into_iter().rev() {
            waiting.push_front(loser);
        }
    }
}

/// The first of what waits, as far as it makes one transaction of a sensible size.
fn take_group(waiting: &mut VecDeque<Ticket>) -> Vec<Ticket> {
    let mut group = vec![];
    let (mut jobs, mut claims) = (0, 0);
    while let Some(ticket) = waiting.front() {
        let mut solo = false;
        match &ticket.command {
            Command::Submit(new) => {
                jobs += new.jobs.len();
                // One with concurrency groups locks them before any build, so it shares with nobody.
                solo = !new.groups.is_empty();
            }
            Command::Claim(_) => claims += 1,
            Command::Record(_) => {}
        }
        let full = jobs > GROUP_JOBS || claims > GROUP_CLAIMS || solo || group.len() >= GROUP;
        if full && !group.is_empty() {
            break;
        }
        group.extend(waiting.pop_front());
        if full {
            break;
        }
    }
    group
}

/// Commits and answers a group; returns those that lost too often.
async fn commit(app: &App, group: Vec<Ticket>) -> Vec<Ticket> {
    app.0.metrics.committed(group.len());
    let commands: Vec<&Command> = group.iter().map(|ticket| &ticket.command).collect();
    match attempt(app, &commands, false).await {
        Ok(answers) => {
            for (ticket, answer) in group.into_iter().zip(answers) {
                // Whoever asked may have gone; what was asked is done.
                let _ = ticket.answer.send(Ok(answer));
            }
            return vec![];
        }
        Err(error) if group.len() > 1 => {
            tracing::debug!(members = group.len(), %error, "a group is committed one by one");
        }
        Err(_) => {}
    }
    let mut losers = vec![];
    for ticket in group {
        losers.extend(alone(app, ticket).await);
    }
    losers
}

async fn alone(app: &App, mut ticket: Ticket) -> Option<Ticket> {
    ticket.losses = 0;
    loop {
        match attempt(app, &[&ticket.command], true).await {
            Ok(mut answers) => {
                let answer = answers.pop().ok_or(STOPPING);
                let _ = ticket.answer.send(answer);
                return None;
            }
            Err(error) => {
                ticket.losses += 1;
                let lost = ticket.losses >= LOSSES;
                match error {
                    store::Error::Conflict if lost => return Some(ticket),
                    error if lost => {
                        let _ = ticket.answer.send(Err(error.into()));
                        return None;
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A group by what is asked, with the place of each command.
#[derive(Default)]
struct Group<'a> {
    submits: Vec<(usize, &'a NewBuild)>,
    words: Vec<(usize, &'a Said)>,
    claims: Vec<(usize, Claim)>,
}

impl<'a> Group<'a> {
    fn of(commands: &[&'a Command]) -> Self {
        let mut group = Self::default();
        for (at, command) in commands.iter().enumerate() {
            match command {
                Command::Submit(new) => group.submits.push((at, new)),
                Command::Record(said) => group.words.push((at, said)),
                Command::Claim(claim) => group.claims.push((at, *claim)),
            }
        }
        group
    }
}

/// One transaction, and what follows it.
async fn attempt(app: &App, commands: &[&Command], again: bool) -> store::Result<Vec<Answer>> {
    let now = app.0.clock.now();
    let group = Group::of(commands);
    let mut round = Round::open(app, &group.claims, now).await?;
    let mut answers = BTreeMap::new();
    let is_idle = group.submits.is_empty() && group.words.is_empty() && round.is_idle();
    let done =
        if is_idle { Ok(()) } else { transact(app, &group, &mut round, again, &mut answers).await };
    let claimed = round.close(done.is_ok());
    done?;
    answers.extend(claimed.into_iter().map(|(at, claimed)| (at, Answer::Claimed(claimed))));
    Ok(answers.into_values().collect())
}

/// Locks come in the order of all transactions: sessions, then what `jobs::apply` takes.
async fn transact(
    app: &App,
    group: &Group<'_>,
    round: &mut Round<'_>,
    again: bool,
    answers: &mut BTreeMap<usize, Answer>,
) -> store::Result<()> {
    let now = app.0.clock.now();
    let mut tx = app.0.store.begin().await?;
    let leases = round.choose(&mut *tx).await?;
    let mut inserted = Inserted::default();
    if !group.submits.is_empty() {
        let news: Vec<&NewBuild> = group.submits.iter().map(|(_, new)| *new).collect();
        inserted = submit::insert(app, &mut *tx, &news, again).await?;
    }
    let mut effects = inserted.effects;
    for ((at, _), submitted) in group.submits.iter().zip(inserted.answers) {
        answers.insert(*at, Answer::Submitted(submitted));
    }
    let words: Vec<&Said> = group.words.iter().map(|(_, said)| *said).collect();
    let wanted: Vec<JobId> = leases.iter().map(|lease| lease.job).collect();
    let mut transitions = sessions::transitions(&words);
    transitions.extend(leases);
    if !transitions.is_empty() {
        let apply = jobs::apply(&mut *tx, &transitions, now);
        let (applied, mut contents) = tokio::try_join!(apply, app.contents(&wanted))?;
        contents.trace(&applied.effects.moved);
        let recorded = sessions::answers(&mut *tx, &words, &applied.results).await?;
        answers.extend(
            group.words.iter().zip(recorded).map(|((at, _), said)| (*at, Answer::Recorded(said))),
        );
        round.hand_out(applied.given, contents);
        effects.merge(applied.effects);
    }
    tx.commit().await?;

    for (id, class) in &inserted.classes {
        app.0.names.learn_class(*id, class);
    }
    app.publish(effects);
    Ok(())
}
