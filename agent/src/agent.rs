//! The agent as a whole: one task owns the leases, takes what happens in order, and carries out what the pure machine
//! says. It waits for nothing but its journal; everything else is a task of its own.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use kiln_core::{id::LeaseId, session::Assignment};
use kiln_sdk::Trust;
use tokio::{
    sync::{mpsc, watch},
    time::{interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    backend::{self, Backend},
    certificate::Keeper,
    clock,
    config::Config,
    connection::{Address, Event, Greeting, Hub, Opened, Server},
    executor::{Began, Executor},
    identity::{self, Identity, enroll},
    journal::{self, Journal},
    lease::{Entry, EntryState, Frame, Input, Leases, Output},
    mask::Masker,
    profile,
    pusher::{Lengths, Upload},
    run::Secret,
};

/// What may wait for the agent's task; who says more waits itself.
const EVENTS: usize = 256;
/// Events that share one round of the journal.
const GROUP: usize = 64;
const TICK: Duration = Duration::from_secs(1);
/// A stopping agent leaves its jobs running; this is for what it holds itself.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Why an agent can't run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Journal(#[from] journal::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("server: {0}")]
    Server(#[from] kiln_sdk::Error),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("ca_fingerprint {0}")]
    Fingerprint(&'static str),
    #[error("this program's own file can't be found: {0}")]
    Executable(std::io::Error),
    #[error("the server evicted this agent: its jobs were ended, and their results are not wanted")]
    Evicted,
}

/// The secrets of a lease: in memory only.
#[derive(Debug)]
pub(crate) struct Secrets {
    pub(crate) list: Vec<Secret>,
    pub(crate) masker: Arc<Masker>,
    /// All that the job asks for are there. Else nothing of its log can be shown.
    pub(crate) complete: bool,
}

impl Secrets {
    fn new(list: Vec<Secret>, complete: bool) -> Arc<Self> {
        let masker = Arc::new(Masker::new(&list));
        Arc::new(Self { list, masker, complete })
    }
}

/// What all tasks of an agent share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) journal: Journal,
    pub(crate) server: Server,
    pub(crate) backends: BTreeMap<String, Arc<dyn Backend>>,
    pub(crate) supervisor: PathBuf,
    pub(crate) events: mpsc::Sender<Event>,
    /// This process ends; jobs go on.
    pub(crate) leaving: CancellationToken,
}

/// A lease on this machine.
#[derive(Debug)]
struct Job {
    cancel: CancellationToken,
    forsake: CancellationToken,
    /// Nothing of it is wanted any more.
    drop: CancellationToken,
    secrets: watch::Sender<Option<Arc<Secrets>>>,
    lengths: watch::Sender<Lengths>,
    tasks: TaskTracker,
}

struct Agent {
    world: Arc<World>,
    leases: Leases,
    jobs: HashMap<LeaseId, Job>,
    frames: Option<mpsc::Sender<Frame>>,
    /// What is to be said next; at most a few frames a lease.
    unsaid: VecDeque<Frame>,
    tracker: TaskTracker,
    /// Leases that are being forgotten; closed where this agent leaves when they are.
    removals: TaskTracker,
    /// The server has let this process in.
    settled: bool,
    evicted: bool,
}

/// Runs an agent until `shutdown`, or until it is drained. Its jobs outlive it.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let identity = identify(&config).await?;
    let backends = backend::all(&config.backends, &identity.agent.to_string());
    let supervisor = std::env::current_exe().map_err(Error::Executable)?;
    run_with(config, &identity, backends, supervisor, shutdown).await
}

/// The identity of the data folder; enrols where a token is given.
async fn identify(config: &Config) -> Result<Identity, Error> {
    match (Identity::load(&config.data_dir), &config.enroll_token_file) {
        (Err(identity::Error::NotEnrolled(_)), Some(path)) => {
            let token = read(path)?;
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let name = if config.name.is_empty() { &host } else { &config.name };
            Ok(enroll(&address(config)?, &token, name, &config.data_dir).await?)
        }
        (result, _) => Ok(result?),
    }
}

fn read(path: &PathBuf) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File { path: path.clone(), source })
}

fn address(config: &Config) -> Result<Address, Error> {
    let ca_pem = config.ca_file.as_ref().map(read).transpose()?.map(String::into_bytes);
    let ca_fingerprint = config.fingerprint().map_err(Error::Fingerprint)?;
    let trust = Trust { ca_pem, ca_fingerprint, identity: None };
    Ok(Address { url: config.server.clone(), trust })
}

/// As [`run`], with backends of the caller's own, and with the program that supervises jobs.
pub async fn run_with(
    config: Config,
    identity: &Identity,
    backends: Vec<Arc<dyn Backend>>,
    supervisor: PathBuf,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let journal = Journal::open(&config.data_dir)?;
    let mut address = address(&config)?;
    let mut keeper = Keeper::new(&address, identity, journal.data());
    if let Some(keeper) = &mut keeper {
        keeper.get(&shutdown).await;
        address = keeper.address();
    }
    let server = Server::new(&address, identity)?;
    let entries = journal.restore()?;
    let home = journal.is_home()?;
    let (events, incoming) = mpsc::channel(EVENTS);
    let leaving = shutdown.child_token();
    let labels = config.labels.clone();
    let (profile, offered) = watch::channel(profile::probe(&labels, &backends).await);
    let tracker = TaskTracker::new();
    tracker.spawn(profile::keep_probing(labels, backends.clone(), profile, leaving.clone()));
    let hub = Hub {
        server: server.clone(),
        instance: journal.instance().to_owned(),
        events: events.clone(),
        profile: offered,
        load: profile::load,
        data: journal.data().to_owned(),
        stop: leaving.clone(),
    };
    if let Some(keeper) = keeper {
        tracker.spawn(keeper.keep(server.clone(), leaving.clone()));
    }
    let named = |backend: Arc<dyn Backend>| (backend.kind().to_owned(), backend);
    let world = World {
        config,
        journal,
        server,
        backends: backends.into_iter().map(named).collect(),
        supervisor,
        events,
        leaving,
    };
    let mut agent = Agent {
        world: Arc::new(world),
        leases: Leases::restore(entries.clone(), home),
        jobs: HashMap::new(),
        frames: None,
        unsaid: VecDeque::new(),
        tracker,
        removals: TaskTracker::new(),
        settled: false,
        evicted: false,
    };
    if home {
        agent.sweep().await;
    } else {
        agent.drop_foreign(&entries).await?;
    }
    agent.adopt();
    agent.tracker.spawn(hub.serve());
    agent.live(incoming).await
}

impl Agent {
    /// Removes what backends left of leases that are in no journal.
    async fn sweep(&self) {
        let keep: Vec<_> = self.leases.entries().map(|entry| entry.assignment.lease).collect();
        for backend in self.world.backends.values() {
            backend.sweep(&keep).await;
        }
    }

    /// Forgets what was not finished in another place or boot. What may run there is not this agent's to end.
    async fn drop_foreign(&self, entries: &[Entry]) -> Result<(), Error> {
        let leases = entries.iter().map(|entry| entry.assignment.lease);
        let gone: Vec<_> = leases.filter(|lease| self.leases.entry(*lease).is_none()).collect();
        if !gone.is_empty() {
            tracing::warn!(
                jobs = gone.len(),
                "the machine was restarted, or this data folder was moved or copied: jobs that ran are gone"
            );
        }
        let forget = move |journal: &Journal| {
            journal.save(&[], &gone)?;
            for lease in &gone {
                journal.discard(*lease);
            }
            Ok(())
        };
        self.keep(forget).await.map(drop)
    }

    /// Goes on with what an earlier process left.
    fn adopt(&mut self) {
        for entry in self.leases.entries().cloned().collect::<Vec<_>>() {
            let Entry { assignment, state, taken_at, interrupted } = entry;
            let lease = assignment.lease;
            self.enter(lease, None);
            match state {
                EntryState::Taken | EntryState::Running => {
                    let began =
                        if interrupted { Began::OnAnotherBoot } else { Began::At(taken_at) };
                    self.execute(Box::new(assignment), began);
                }
                EntryState::Finished(report) => {
                    if let Some(job) = self.jobs.get(&lease) {
                        job.lengths.send_replace(Some(report.log_lengths));
                    }
                }
            }
        }
    }

    async fn live(mut self, mut incoming: mpsc::Receiver<Event>) -> Result<(), Error> {
        let mut ticks = interval(TICK);
        let mut group = Vec::with_capacity(GROUP);
        let leaving = self.world.leaving.clone();
        loop {
            let frames = self.frames.clone();
            tokio::select! {
                biased;
                () = leaving.cancelled() => break,
                () = self.removals.wait() => break,
                _ = ticks.tick() => group.push(Event::Input(Input::Tick)),
                permit = reserve(frames.as_ref()), if self.has_word() => {
                    match (permit, self.unsaid.pop_front()) {
                        (Some(permit), Some(frame)) => permit.send(frame),
                        // The session is over; the next one says what counts.
                        _ => self.frames = None,
                    }
                }
                count = incoming.recv_many(&mut group, GROUP) => if count == 0 { break },
            }
            self.take(&mut group).await?;
        }
        self.world.leaving.cancel();
        drop(incoming);
        self.tracker.close();
        if timeout(STOP_LIMIT, self.tracker.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        if self.evicted { Err(Error::Evicted) } else { Ok(()) }
    }

    fn has_word(&self) -> bool {
        self.frames.is_some() && !self.unsaid.is_empty()
    }

    /// Takes events that came together: what they change is saved at once, then the rest is done in order.
    async fn take(&mut self, group: &mut Vec<Event>) -> Result<(), Error> {
        let mut outputs = vec![];
        let mut greetings = vec![];
        let mut heard = false;
        for event in group.drain(..) {
            match event {
                Event::Hello(ask) => greetings.push((ask, self.leases.journal())),
                Event::Welcome(opened) => {
                    heard = true;
                    outputs.extend(self.welcome(*opened));
                    self.settle().await?;
                }
                Event::Assign { session, assignment, secrets } => {
                    let lease = assignment.lease;
                    if let Some(name) = missing(&assignment, &secrets) {
                        let why = format!("the server sent no value for secret {name:?}");
                        outputs.push(Output::Send(Frame::Refused(lease, why)));
                        continue;
                    }
                    let input = Input::Assign { session, assignment };
                    let told = self.leases.apply(input, clock::boot_ms());
                    if told.iter().any(|output| matches!(output, Output::Run(_))) {
                        self.enter(lease, Some(Secrets::new(secrets, true)));
                    }
                    outputs.extend(told);
                }
                Event::Refuse(lease, why) => outputs.push(Output::Send(Frame::Refused(lease, why))),
                Event::Input(input) => {
                    if let Input::Ended(lease, report) = &input
                        && let Some(job) = self.jobs.get(lease)
                    {
                        job.lengths.send_replace(Some(report.log_lengths.clone()));
                    }
                    heard |= input == Input::Beat;
                    self.evicted |= input == Input::Evicted;
                    if input == Input::Disconnected {
                        self.frames = None;
                        self.unsaid.clear();
                    }
                    outputs.extend(self.leases.apply(input, clock::boot_ms()));
                }
            }
        }
        if !self.save(&outputs).await? {
            return Ok(());
        }
        if heard {
            self.pass_on_word();
        }
        for output in outputs {
            self.perform(output);
        }
        for (ask, journal) in greetings {
            let Some(epoch) = self.keep(Journal::next_epoch).await? else { return Ok(()) };
            let _gone_when_stopping = ask.send(Greeting { epoch, journal });
        }
        Ok(())
    }

    /// The supervisors of exclusive jobs keep the time since the server's last word, in case this process dies.
    fn pass_on_word(&self) {
        let mark = clock::boot_ms();
        for entry in self.leases.entries().filter(|entry| entry.assignment.exclusive) {
            let lease = entry.assignment.lease;
            if let Err(error) = self.world.journal.folder(lease).hear(mark) {
                tracing::warn!(%lease, %error, "its supervisor can't be told that the server answers");
            }
        }
    }

    fn welcome(&mut self, opened: Opened) -> Vec<Output> {
        let Opened { session, grace_ms, keep, secrets, abandon, frames } = opened;
        self.frames = Some(frames);
        self.unsaid.clear();
        for (lease, secrets) in secrets {
            if let Some(job) = self.jobs.get(&lease)
                && job.secrets.borrow().is_none()
            {
                let entry = self.leases.entry(lease);
                let complete =
                    entry.is_none_or(|entry| missing(&entry.assignment, &secrets).is_none());
                job.secrets.send_replace(Some(Secrets::new(secrets, complete)));
            }
        }
        self.leases.apply(Input::Welcome { session, grace_ms, keep, abandon }, clock::boot_ms())
    }

    /// This is the agent's home from the first Welcome on; what backends left of another one goes.
    async fn settle(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.settled, true) {
            return Ok(());
        }
        if self.keep(Journal::settle).await? == Some(true) {
            self.sweep().await;
        }
        Ok(())
    }

    /// Writes each entry that changed once, as it is now, and what is to be forgotten; all of it together. False: this
    /// process ends, and nothing of it may be done.
    async fn save(&self, outputs: &[Output]) -> Result<bool, Error> {
        let mut entries = BTreeMap::new();
        let mut gone = vec![];
        for output in outputs {
            match output {
                Output::Save(lease) => {
                    entries.extend(self.leases.entry(*lease).map(|entry| (*lease, entry.clone())));
                }
                Output::Remove(lease) => gone.push(*lease),
                _ => {}
            }
        }
        if entries.is_empty() && gone.is_empty() {
            return Ok(true);
        }
        let entries: Vec<_> = entries.into_values().collect();
        let saved = self.keep(move |journal| journal.save(&entries, &gone)).await?;
        Ok(saved.is_some())
    }

    /// Writes to the journal; where the disk has no room, again until it has, or until this process ends. The jobs go on
    /// meanwhile.
    async fn keep<T: Send + 'static>(
        &self,
        work: impl Fn(&Journal) -> Result<T, journal::Error> + Send + Sync + 'static,
    ) -> Result<Option<T>, Error> {
        let work = Arc::new(work);
        loop {
            let (world, work) = (Arc::clone(&self.world), Arc::clone(&work));
            match blocking(move || work(&world.journal)).await {
                Err(Error::Journal(full)) if full.is_no_room() => {
                    tracing::warn!(error = %full, "the journal waits for room on the disk");
                }
                done => return done.map(Some),
            }
            tokio::select! {
                () = self.world.leaving.cancelled() => return Ok(None),
                () = sleep(TICK) => {}
            }
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Save(_) => {}
            Output::Remove(lease) => self.remove(lease),
            Output::Send(frame) => {
                if self.frames.is_some() && !self.unsaid.contains(&frame) {
                    self.unsaid.push_back(frame);
                }
            }
            Output::Run(assignment) => self.execute(assignment, Began::At(clock::boot_ms())),
            Output::Cancel(lease) | Output::Kill(lease) => {
                if let Some(job) = self.jobs.get(&lease) {
                    job.cancel.cancel();
                }
            }
            Output::Forsake(lease) => {
                if let Some(job) = self.jobs.get(&lease) {
                    job.forsake.cancel();
                }
            }
            Output::Exit if self.removals.is_closed() => {}
            Output::Exit => {
                tracing::info!("no job is left: leaving");
                self.removals.close();
            }
        }
    }

    /// Makes room for a lease, and begins to bring its log to the server.
    fn enter(&mut self, lease: LeaseId, secrets: Option<Arc<Secrets>>) {
        let job = Job {
            cancel: CancellationToken::new(),
            forsake: CancellationToken::new(),
            drop: CancellationToken::new(),
            secrets: watch::Sender::new(secrets),
            lengths: watch::Sender::new(None),
            tasks: TaskTracker::new(),
        };
        let upload = Upload {
            world: Arc::clone(&self.world),
            lease,
            folder: self.world.journal.folder(lease),
            secrets: job.secrets.subscribe(),
            lengths: job.lengths.subscribe(),
            stop: job.drop.clone(),
        };
        self.tracker.spawn(job.tasks.track_future(upload.run()));
        self.jobs.insert(lease, job);
    }

    fn execute(&mut self, assignment: Box<Assignment>, began: Began) {
        let Some(job) = self.jobs.get(&assignment.lease) else { return };
        tracing::info!(lease = %assignment.lease, job = %assignment.job, "job taken");
        let lifeline_ms = if assignment.exclusive { self.leases.lifeline_ms() } else { 0 };
        let executor = Executor {
            world: Arc::clone(&self.world),
            folder: self.world.journal.folder(assignment.lease),
            job: assignment,
            began,
            cancel: job.cancel.clone(),
            forsake: job.forsake.clone(),
            lifeline_ms,
            secrets: job.secrets.subscribe(),
        };
        self.tracker.spawn(job.tasks.track_future(executor.run()));
    }

    /// The journal has forgotten the lease; its folder goes when nothing uses it any more.
    fn remove(&mut self, lease: LeaseId) {
        let Some(job) = self.jobs.remove(&lease) else { return };
        job.drop.cancel();
        let world = Arc::clone(&self.world);
        let removal = self.removals.track_future(async move {
            job.tasks.close();
            job.tasks.wait().await;
            for backend in world.backends.values() {
                backend.remove(lease).await;
            }
            let _tried_again_at_start =
                tokio::task::spawn_blocking(move || world.journal.discard(lease)).await;
        });
        self.tracker.spawn(removal);
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, journal::Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(Error::Executable(std::io::Error::other(error))),
    }
}

/// The name of a secret that the job asks for and does not have.
fn missing<'a>(assignment: &'a Assignment, secrets: &[Secret]) -> Option<&'a str> {
    let names = assignment.spec.secrets.iter().map(String::as_str);
    names.into_iter().find(|name| secrets.iter().all(|secret| secret.name != *name))
}

/// Room for a frame; nothing where the session is over.
async fn reserve(frames: Option<&mpsc::Sender<Frame>>) -> Option<mpsc::Permit<'_, Frame>> {
    frames?.reserve().await.ok()
}
