//! The world of a seed: one server at a time on one store, some machines, and what can happen to them.

use std::{collections::BTreeMap, sync::Arc};

use kiln_agent::lease::{EntryState, Frame, Input as AgentInput};
use kiln_core::{
    Millis,
    agent::{Load, Offer, Profile},
    id::{BuildId, LeaseId},
    outcome::{FailureKind, Outcome, RetryPolicy},
    session::{Assignment, Input, Record, Say, Session},
    spec::{BuildSpec, ConcurrencyGroup, JobSpec, Need, Timeouts},
};
use kiln_server::{
    app::{App, Hello, Role, Submit, Timing},
    clock::SharedClock,
    store::{SharedStore, memory::Memory},
    wake::Local,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    agent::{Down, Link, Machine, Up},
    clock::{Chance, SimClock},
    story::Stats,
};

const MACHINES: usize = 3;
/// Longest piece of time that passes at once: below the margin in which an exclusive job is ended.
const TIME_STEP_MS: usize = 4_000;

/// Adds a line to the story, where someone will read it.
macro_rules! tell {
    ($world:expr, $($text:tt)*) => {
        if $world.telling {
            let line = format!($($text)*);
            $world.story.push(format!("{:>7} ms  {line}", $world.clock.elapsed_ms()));
        }
    };
}

/// Everything there is.
#[derive(Debug)]
pub(super) struct World {
    pub app: App,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    pub store: SharedStore,
    pub builds: Vec<BuildId>,
    pub machines: Vec<Machine>,
    pub assignments: BTreeMap<LeaseId, Assignment>,
    memory: Memory,
    clock: Arc<SimClock>,
    chance: Chance,
    faults: usize,
    telling: bool,
    story: Vec<String>,
}

impl World {
    pub(super) async fn new(seed: u64, telling: bool) -> Self {
        let clock = Arc::new(SimClock::default());
        let memory = Memory::default();
        let store: SharedStore = Arc::new(memory.clone());
        let (app, tasks, shutdown) = start_server(&store, &clock);
        let mut world = Self {
            app,
            tasks,
            shutdown,
            store,
            builds: vec![],
            machines: vec![],
            assignments: BTreeMap::new(),
            memory,
            clock,
            chance: Chance::new(seed),
            faults: 0,
            telling,
            story: vec![],
        };
        for number in 0..MACHINES {
            let (_, secret) = world
                .app
                .create_token(&format!("enrol-{number}"), Role::Enroller, None, None)
                .await
                .expect("a token");
            let name = format!("machine-{number}");
            let id =
                world.app.enroll(&secret, &name, &[u8::try_from(number).unwrap_or(0); 32]).await;
            world.machines.push(Machine::new(id.expect("an agent")));
        }
        world
    }

    pub(super) fn stats(&self) -> Stats {
        let leases = self.machines.iter().map(|machine| machine.starts.len()).sum();
        Stats { builds: self.builds.len(), leases, faults: self.faults }
    }

    pub(super) fn into_story(self) -> Vec<String> {
        self.story
    }

    /// Stops the server, whose tasks must all end.
    pub(super) async fn end(&mut self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn now(&self) -> Millis {
        self.clock.elapsed_ms()
    }

    /// One thing happens, chosen by chance.
    pub(super) async fn step(&mut self) -> Result<(), String> {
        let machine = self.chance.below(MACHINES);
        match self.chance.below(100) {
            0..4 => self.submit().await,
            4..6 => self.user_acts().await,
            6..16 => self.connect(machine),
            16..36 => self.deliver_up(machine).await?,
            36..52 => self.deliver_down(machine),
            52..62 => self.claim(machine).await?,
            62..68 => self.announce(machine),
            68..76 => self.finish(machine),
            76..80 => self.seal(machine),
            80..84 => self.look_at_rows(machine).await?,
            84..88 => self.heartbeat(machine),
            88..93 => self.time_passes().await,
            93..95 => self.cut(machine),
            95..97 => self.crash(machine),
            97 => self.restart_server().await,
            98 => self.commit_fails(),
            _ => self.clock_jumps(),
        }
        Ok(())
    }

    async fn submit(&mut self) {
        let mut jobs: Vec<JobSpec> = vec![];
        for number in 0..=self.chance.below(4) {
            let needs = jobs.iter().filter(|_| self.chance.percent(40));
            let needs = needs.map(|job| Need { job: job.name.clone(), artifacts: false }).collect();
            jobs.push(JobSpec {
                name: format!("j{number}"),
                backend: "shell".to_owned(),
                script: "true".to_owned(),
                needs,
                allow_failure: self.chance.percent(20),
                retry: RetryPolicy { max_attempts: 2, ..RetryPolicy::default() },
                timeouts: Timeouts { queue_ms: 30 * 24 * 3_600_000, ..Timeouts::default() },
                concurrency: self
                    .chance
                    .percent(20)
                    .then(|| ConcurrencyGroup { name: "deploy".to_owned(), limit: 1 }),
                ..JobSpec::default()
            });
        }
        let spec = BuildSpec {
            title: format!("build {}", self.builds.len()),
            jobs,
            ..BuildSpec::default()
        };
        let submit = Submit {
            project: "default".to_owned(),
            key: None,
            spec,
            submitter: "simulation".to_owned(),
        };
        match self.app.submit(submit).await {
            Ok((view, _)) => {
                tell!(self, "submit {} with {} jobs", view.build.id, view.build.counts.total());
                self.builds.push(view.build.id);
            }
            Err(error) => tell!(self, "submit fails: {error}"),
        }
    }

    async fn user_acts(&mut self) {
        let Some(build) = self.chance.pick(&self.builds) else { return };
        let line = if self.chance.percent(50) {
            format!(
                "cancel {build}: {:?}",
                self.app.cancel(build, None, "simulated").await.map(|_| ())
            )
        } else {
            format!(
                "retry {build}: {:?}",
                self.app.retry(build, vec![]).await.map(|(_, jobs)| jobs)
            )
        };
        tell!(self, "{line}");
    }

    fn connect(&mut self, machine: usize) {
        let now = self.now();
        if !self.machines[machine].up {
            tell!(self, "machine {machine} starts again");
            self.machines[machine].restart(now);
        }
        if self.machines[machine].link.is_none() {
            tell!(
                self,
                "machine {machine} connects: {:?}",
                self.machines[machine].leases.journal()
            );
            self.machines[machine].connect(now);
        }
    }

    fn cut(&mut self, machine: usize) {
        self.faults += 1;
        tell!(self, "the stream of machine {machine} is cut");
        let now = self.now();
        self.machines[machine].cut(now);
    }

    fn crash(&mut self, machine: usize) {
        self.faults += 1;
        let reboot = self.chance.percent(30);
        tell!(self, "machine {machine} crashes{}", if reboot { " with its processes" } else { "" });
        self.machines[machine].crash(reboot);
    }

    async fn restart_server(&mut self) {
        self.faults += 1;
        tell!(self, "the server restarts");
        let now = self.now();
        for machine in &mut self.machines {
            machine.cut(now);
        }
        self.end().await;
        (self.app, self.tasks, self.shutdown) = start_server(&self.store, &self.clock);
    }

    fn commit_fails(&mut self) {
        self.faults += 1;
        tell!(self, "the next commit fails");
        self.memory.fail_next_commit(1);
    }

    fn clock_jumps(&mut self) {
        let hours = [-48, -1, 1, 48][self.chance.below(4)];
        tell!(self, "the wall clock jumps by {hours} h");
        self.clock.jump(hours * 3_600_000);
    }

    async fn time_passes(&mut self) {
        let millis = Millis::try_from(self.chance.below(TIME_STEP_MS)).unwrap_or(0);
        self.pass(millis).await;
    }

    /// Time goes on everywhere. An exclusive job ends on its machine when nobody answered for too long; the supervisor
    /// does that where the agent is dead.
    async fn pass(&mut self, millis: Millis) {
        self.clock.pass(millis);
        let now = self.now();
        for machine in &mut self.machines {
            machine.apply_tick(now);
        }
        if let Err(error) = self.app.sweep().await {
            tell!(self, "the sweep fails: {error}");
        }
    }

    fn heartbeat(&mut self, machine: usize) {
        if let Some(link) = &mut self.machines[machine].link
            && link.session.is_some()
        {
            link.up.push_back(Up::Heartbeat);
        }
    }

    async fn claim(&mut self, machine: usize) -> Result<(), String> {
        let Some(session) = self.session(machine).map(Session::id) else {
            return Ok(());
        };
        let given = match self.app.claim(session).await {
            Ok(given) if given.is_empty() => return Ok(()),
            Ok(given) => given,
            Err(error) => {
                tell!(self, "the claim fails: {error}");
                return Ok(());
            }
        };
        let leases: Vec<_> = given.iter().map(|assignment| assignment.lease).collect();
        tell!(self, "machine {machine} is given {leases:?}");
        self.assignments.extend(given.into_iter().map(|assignment| (assignment.lease, assignment)));
        self.input(machine, Input::Given(leases)).await
    }

    /// The session compares with the rows, as a hint makes it do.
    async fn look_at_rows(&mut self, machine: usize) -> Result<(), String> {
        let Some(session) = self.session(machine) else { return Ok(()) };
        let known: Vec<_> = session.leases().collect();
        let agent = self.machines[machine].id;
        let (facts, _) = self.app.facts(agent).await.map_err(|error| format!("facts: {error}"))?;
        let facts: BTreeMap<_, _> = facts.into_iter().map(|facts| (facts.lease, facts)).collect();
        for lease in known {
            match facts.get(&lease) {
                Some(facts) if facts.cancelling => {
                    self.input(machine, Input::Cancelling(lease)).await?;
                }
                Some(_) => {}
                None => self.input(machine, Input::Voided(lease)).await?,
            }
        }
        Ok(())
    }

    fn session(&self, machine: usize) -> Option<&Session> {
        self.machines[machine].link.as_ref().and_then(|link| link.session.as_ref())
    }

    fn link(&mut self, machine: usize) -> Option<&mut Link> {
        self.machines[machine].link.as_mut()
    }

    async fn deliver_up(&mut self, machine: usize) -> Result<(), String> {
        let Some(frame) = self.link(machine).and_then(|link| link.up.pop_front()) else {
            return Ok(());
        };
        tell!(self, "machine {machine} -> server: {frame:?}");
        match frame {
            Up::Hello { epoch, journal } => self.hello(machine, epoch, journal).await,
            Up::Heartbeat => {
                let Some(session) = self.session(machine).map(Session::id) else { return Ok(()) };
                match self.app.beat(session, Load::default()).await {
                    Ok(true) => self.input(machine, Input::Heartbeat).await,
                    Ok(false) => {
                        let now = self.now();
                        tell!(self, "machine {machine}: its session is closed");
                        self.machines[machine].cut(now);
                        Ok(())
                    }
                    Err(error) => {
                        tell!(self, "the heartbeat fails: {error}");
                        Ok(())
                    }
                }
            }
            Up::Frame(Frame::Started(lease)) => self.input(machine, Input::Started(lease)).await,
            Up::Frame(Frame::Refused(lease, why)) => {
                self.input(machine, Input::Refused(lease, why)).await
            }
            Up::Frame(Frame::Finished(lease, report)) => {
                self.input(machine, Input::Finished(lease, report)).await
            }
        }
    }

    async fn hello(
        &mut self,
        machine: usize,
        epoch: i64,
        journal: Vec<(LeaseId, kiln_core::session::Held)>,
    ) -> Result<(), String> {
        let hello =
            Hello { instance: format!("machine-{machine}"), epoch, profile: profile(), journal };
        let agent = self.machines[machine].id;
        let welcome = match self.app.hello(agent, hello).await {
            Ok(welcome) => welcome,
            Err(error) => {
                tell!(self, "machine {machine} is refused: {error}");
                let now = self.now();
                self.machines[machine].cut(now);
                return Ok(());
            }
        };
        tell!(self, "machine {machine} is welcome: {:?}", welcome.reconciled);
        let Some(link) = self.link(machine) else { return Ok(()) };
        link.down.push_back(Down::Welcome {
            session: welcome.session,
            keep: welcome.reconciled.keep.clone(),
            abandon: welcome.reconciled.abandon.clone(),
        });
        link.session = Some(Session::open(welcome.session, &welcome.reconciled));
        self.say(machine);
        Ok(())
    }

    /// Gives an input to the session at the server's end, records what it wants recorded, and says what it says.
    async fn input(&mut self, machine: usize, input: Input) -> Result<(), String> {
        let Some(session) = self.link(machine).and_then(|link| link.session.as_mut()) else {
            return Ok(());
        };
        let id = session.id();
        if let Some(record) = session.apply(input) {
            let lease = match &record {
                Record::Start(lease) | Record::Return(lease, _) | Record::Finish(lease, _) => {
                    *lease
                }
            };
            let recorded = match self.app.record(id, record).await {
                Ok(recorded) => recorded,
                Err(error) => {
                    tell!(self, "{lease} is not recorded: {error}");
                    self.cut(machine);
                    return Ok(());
                }
            };
            tell!(self, "recorded {lease}: {recorded:?}");
            if let Some(session) = self.link(machine).and_then(|link| link.session.as_mut()) {
                session.apply(Input::Recorded(lease, recorded));
            }
        }
        self.say(machine);
        Ok(())
    }

    fn say(&mut self, machine: usize) {
        let assignments = &self.assignments;
        let Some(link) = self.machines[machine].link.as_mut() else { return };
        let Some(session) = link.session.as_mut() else { return };
        let id = session.id();
        for say in session.take() {
            link.down.push_back(match say {
                Say::Ack(lease) => Down::Ack(lease),
                Say::Abandon(lease) => Down::Abandon(lease),
                Say::Revoke(lease) => Down::Revoke(lease),
                Say::Assign(lease) => match assignments.get(&lease) {
                    Some(assignment) => {
                        Down::Assign { session: id, assignment: Box::new(assignment.clone()) }
                    }
                    None => continue,
                },
                Say::Drain => Down::Drain,
                Say::Beat => Down::Beat,
            });
        }
    }

    fn deliver_down(&mut self, machine: usize) {
        let crash = self.crash_after();
        let now = self.now();
        let late = self.chance.percent(10).then(|| self.machines[machine].late.pop()).flatten();
        let late = late.filter(|_| self.machines[machine].up);
        let next = late.or_else(|| self.link(machine).and_then(|link| link.down.pop_front()));
        let Some(frame) = next else { return };
        tell!(self, "server -> machine {machine}: {frame:?}");
        let input = match frame {
            Down::Welcome { session, keep, abandon } => {
                AgentInput::Welcome { session, grace_ms: grace_ms(), keep, abandon }
            }
            Down::Assign { session, assignment } => AgentInput::Assign { session, assignment },
            Down::Ack(lease) => AgentInput::Ack(lease),
            Down::Revoke(lease) => AgentInput::Revoke(lease),
            Down::Abandon(lease) => AgentInput::Abandon(lease),
            Down::Drain => AgentInput::Drain,
            Down::Beat => AgentInput::Beat,
        };
        self.machines[machine].apply(input, now, crash);
    }

    /// Now and then the agent dies between two of its outputs.
    fn crash_after(&mut self) -> Option<usize> {
        let crash = self.chance.percent(2).then(|| self.chance.below(3));
        self.faults += usize::from(crash.is_some());
        crash
    }

    fn announce(&mut self, machine: usize) {
        let now = self.now();
        let crash = self.crash_after();
        let machine = &mut self.machines[machine];
        let taken: Vec<_> = machine
            .leases
            .entries()
            .filter(|entry| entry.state == EntryState::Taken)
            .map(|entry| entry.assignment.lease)
            .filter(|lease| machine.processes.contains_key(lease))
            .collect();
        if let (true, Some(lease)) = (machine.up, self.chance.pick(&taken)) {
            machine.announce(lease, now, crash);
        }
    }

    fn finish(&mut self, machine: usize) {
        let now = self.now();
        let crash = self.crash_after();
        let leases: Vec<_> = self.machines[machine].processes.keys().copied().collect();
        let (true, Some(lease)) = (self.machines[machine].up, self.chance.pick(&leases)) else {
            return;
        };
        let cancelled = self.machines[machine].processes[&lease].cancelled;
        let outcome = match self.chance.below(10) {
            _ if cancelled => Outcome::cancelled("on request"),
            0 => Outcome::failed(FailureKind::User, "exit code 1"),
            1 => Outcome::failed(FailureKind::Infra, "disk"),
            _ => Outcome::Succeeded,
        };
        tell!(self, "process {lease} on machine {machine} ends: {outcome:?}");
        self.machines[machine].finish(lease, outcome, now, crash);
    }

    fn seal(&mut self, machine: usize) {
        let now = self.now();
        let machine = &mut self.machines[machine];
        let finished: Vec<_> = machine
            .leases
            .entries()
            .filter(|entry| matches!(entry.state, EntryState::Finished(_)))
            .map(|entry| entry.assignment.lease)
            .collect();
        if let (true, Some(lease)) =
            (machine.up && machine.leases.is_connected(), self.chance.pick(&finished))
        {
            machine.apply(AgentInput::LogSealed(lease), now, None);
        }
    }

    /// No more faults: everything is delivered, every process ends, until all builds are done.
    pub(super) async fn heal(&mut self) -> Result<(), String> {
        tell!(self, "the world heals");
        self.memory.fail_next_commit(0);
        for _ in 0..400 {
            for machine in 0..MACHINES {
                self.connect(machine);
                while self.link(machine).is_some_and(|link| !link.up.is_empty()) {
                    self.deliver_up(machine).await?;
                }
                self.look_at_rows(machine).await?;
                self.claim(machine).await?;
                while self.link(machine).is_some_and(|link| !link.down.is_empty()) {
                    self.deliver_down(machine);
                }
                self.announce(machine);
                for _ in 0..3 {
                    self.finish(machine);
                    self.seal(machine);
                }
                self.heartbeat(machine);
            }
            self.pass(2_000).await;
            if self.unfinished().await?.is_empty() {
                return Ok(());
            }
        }
        Err(format!(
            "the world healed, but these did not end: {}",
            self.unfinished().await?.join("; ")
        ))
    }

    /// What is not done, in words.
    async fn unfinished(&self) -> Result<Vec<String>, String> {
        let mut found = vec![];
        for (number, machine) in self.machines.iter().enumerate() {
            found.extend(machine.journal().map(|lease| format!("machine {number} holds {lease}")));
            found.extend(
                machine.processes.keys().map(|lease| format!("machine {number} runs {lease}")),
            );
        }
        for &build in &self.builds {
            let (view, jobs) =
                self.app.build_with_jobs(build).await.map_err(|error| error.to_string())?;
            let open = jobs.iter().filter(|job| !job.job.job.status().is_done());
            found.extend(open.map(|job| format!("{build}: {:?}", job.job)));
            if !view.build.state().is_done() {
                found.push(format!("{build} is {}", view.build.state().as_str()));
            }
        }
        Ok(found)
    }
}

fn start_server(
    store: &SharedStore,
    clock: &Arc<SimClock>,
) -> (App, TaskTracker, CancellationToken) {
    let clock: SharedClock = Arc::clone(clock) as SharedClock;
    let app = App::new(Arc::clone(store), Arc::new(Local::default()), clock, Timing::default());
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    app.start(&tasks, &shutdown);
    (app, tasks, shutdown)
}

fn grace_ms() -> Millis {
    Millis::try_from(Timing::default().grace.as_millis()).unwrap_or(Millis::MAX)
}

fn profile() -> Profile {
    let offer = Offer { slots: 2, operations: ["script".to_owned()].into(), ..Offer::default() };
    Profile {
        arch: "x86_64".to_owned(),
        backends: [("shell".to_owned(), offer)].into(),
        ..Profile::default()
    }
}
