//! The world of a seed: one server at a time on one store, some machines, and what can happen to them.

mod builds;
mod heal;
mod link;
mod processes;

use std::{collections::BTreeMap, sync::Arc};

use kiln_core::{
    Millis,
    id::{BuildId, LeaseId},
    session::Assignment,
};
use kiln_server::{
    app::{App, Role, Timing},
    clock::SharedClock,
    metrics::Metrics,
    store::{SharedStore, memory::Memory},
    wake::Local,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::chance::Chance;

use super::{
    agent::{Fault, Machine},
    clock::SimClock,
    plan::{Action, Step},
    story::{Stats, tell},
};

const MACHINES: usize = 3;
/// Longest piece of time that passes at once: below the margin in which an exclusive job is ended.
const TIME_STEP_MS: usize = 4_000;

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
    healing: bool,
    faults: usize,
    telling: bool,
    story: Vec<String>,
}

impl World {
    pub(super) async fn new(fault: Option<Fault>, telling: bool) -> Self {
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
            chance: Chance::new(0),
            healing: false,
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
            world.machines.push(Machine::new(id.expect("an agent"), &name, fault));
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

    /// One thing happens.
    pub(super) async fn perform(&mut self, step: Step) -> Result<(), String> {
        self.chance = Chance::new(step.chance);
        let machine = step.machine % self.machines.len();
        match step.action {
            Action::Submit => self.submit().await,
            Action::UserActs => self.user_acts().await,
            Action::Connect => self.connect(machine),
            Action::DeliverUp => self.deliver_up(machine).await?,
            Action::DeliverDown => self.deliver_down(machine),
            Action::Claim => self.claim(machine).await?,
            Action::Announce => self.announce(machine),
            Action::Finish => self.finish(machine),
            Action::Seal => self.seal(machine),
            Action::LookAtRows => self.look_at_rows(machine).await?,
            Action::Heartbeat => self.heartbeat(machine),
            Action::TimePasses => self.time_passes().await,
            Action::Cut => self.cut(machine),
            Action::Crash => self.crash(machine),
            Action::Copy => self.copy(machine),
            Action::RestartServer => self.restart_server().await,
            Action::CommitFails => self.commit_fails(),
            Action::ClockJumps => self.clock_jumps(),
        }
        Ok(())
    }

    fn connect(&mut self, machine: usize) {
        let now = self.now();
        if self.machines[machine].retired {
            return;
        }
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

    /// Someone starts an agent from a copy of this one's data folder.
    fn copy(&mut self, machine: usize) {
        if self.machines.len() > MACHINES {
            return;
        }
        self.faults += 1;
        let copy = self.machines.len();
        tell!(self, "machine {copy} is a copy of machine {machine}");
        let machine = self.machines[machine].copy(&format!("copy-{copy}"));
        self.machines.push(machine);
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
}

fn start_server(
    store: &SharedStore,
    clock: &Arc<SimClock>,
) -> (App, TaskTracker, CancellationToken) {
    let clock: SharedClock = Arc::clone(clock) as SharedClock;
    let app = App::new(
        Arc::clone(store),
        Arc::new(Local::default()),
        clock,
        Timing::default(),
        Metrics::default(),
    );
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    app.start(&tasks, &shutdown);
    (app, tasks, shutdown)
}
