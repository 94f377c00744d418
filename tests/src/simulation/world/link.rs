//! What travels between a machine and the server, and the server's half of the session at its end.

use std::collections::BTreeMap;

use kiln_agent::lease::{Frame, Input as AgentInput};
use kiln_core::{
    Millis,
    agent::{Load, Offer, Profile},
    id::LeaseId,
    session::{Held, Input, Record, Say, Session},
};
use kiln_server::app::{Hello, Timing};

use super::{
    super::agent::{Down, Link, Up},
    World, tell,
};

impl World {
    pub(super) fn heartbeat(&mut self, machine: usize) {
        if let Some(link) = &mut self.machines[machine].link
            && link.session.is_some()
        {
            link.up.push_back(Up::Heartbeat);
        }
    }

    pub(super) async fn claim(&mut self, machine: usize) -> Result<(), String> {
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
    pub(super) async fn look_at_rows(&mut self, machine: usize) -> Result<(), String> {
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

    pub(super) fn link(&mut self, machine: usize) -> Option<&mut Link> {
        self.machines[machine].link.as_mut()
    }

    pub(super) async fn deliver_up(&mut self, machine: usize) -> Result<(), String> {
        let Some(frame) = self.link(machine).and_then(|link| link.up.pop_front()) else {
            return Ok(());
        };
        tell!(self, "machine {machine} -> server: {frame}");
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
        journal: Vec<(LeaseId, Held)>,
    ) -> Result<(), String> {
        let instance = self.machines[machine].instance().to_owned();
        let hello = Hello { instance, epoch, profile: profile(), journal };
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

    pub(super) fn deliver_down(&mut self, machine: usize) {
        let crash = self.crash_after();
        let now = self.now();
        let late = self.chance.percent(10).then(|| self.machines[machine].late.pop()).flatten();
        let late = late.filter(|_| self.machines[machine].up);
        let next = late.or_else(|| self.link(machine).and_then(|link| link.down.pop_front()));
        let Some(frame) = next else { return };
        tell!(self, "server -> machine {machine}: {frame}");
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
