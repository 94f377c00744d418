//! Who gets what: classes, the order of candidates, and why a job waits. Pure.

mod explain;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    Millis,
    agent::{Admission, Agent},
    id::{AgentId, JobId, ProjectId},
    spec::{Constraints, JobSpec},
};

pub use explain::{Reason, Verdict, Wait, explain};

/// How long a queued job is kept for the agent that has its caches warm, while that agent has room.
pub const STICKY_MS: Millis = 2_000;

/// The part of a job's specification that decides which agents fit. Equal classes share a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Class {
    pub backend: String,
    pub operation: String,
    pub constraints: Constraints,
    pub features: BTreeSet<String>,
}

impl Class {
    pub fn of(spec: &JobSpec) -> Self {
        Self {
            backend: spec.backend.clone(),
            operation: "script".to_owned(),
            constraints: spec.constraints.clone(),
            features: spec.features(),
        }
    }

    /// Why an agent can't run jobs of this class, whatever its load. Empty: it can.
    pub fn misfits(&self, agent: &Agent) -> Vec<Reason> {
        let mut reasons = vec![];
        let profile = &agent.profile;
        match profile.backends.get(&self.backend) {
            None => reasons
                .push(Reason::new("BACKEND", format!("does not offer backend {:?}", self.backend))),
            Some(offer) => {
                if let Some(why) = &offer.unavailable {
                    reasons.push(Reason::new(
                        "BACKEND",
                        format!("backend {:?} is unavailable: {why}", self.backend),
                    ));
                }
                if !offer.operations.contains(&self.operation) {
                    reasons.push(Reason::new(
                        "OPERATION",
                        format!("its backend does not do {:?}", self.operation),
                    ));
                }
                let missing: Vec<_> =
                    self.features.difference(&offer.features).map(String::as_str).collect();
                if !missing.is_empty() {
                    reasons.push(Reason::new(
                        "FEATURES",
                        format!("its backend lacks: {}", missing.join(", ")),
                    ));
                }
            }
        }
        let want = &self.constraints;
        if !want.arch.is_empty() && want.arch != profile.arch {
            reasons.push(Reason::new("ARCH", format!("is {}, not {}", profile.arch, want.arch)));
        }
        for (key, value) in &want.labels {
            match profile.labels.get(key) {
                None => reasons.push(Reason::new("LABEL", format!("has no label {key:?}"))),
                Some(has) if !value.is_empty() && has != value => {
                    reasons.push(Reason::new(
                        "LABEL",
                        format!("label {key:?} is {has:?}, not {value:?}"),
                    ));
                }
                Some(_) => {}
            }
        }
        let mut minimum = |what: &'static str, has: u64, wanted: u64, unit: u64, name: &str| {
            if has < wanted {
                let (has, wanted) = (hundredths(has, unit, false), hundredths(wanted, unit, true));
                reasons.push(Reason::new(what, format!("has {has} {name}, {wanted} needed")));
            }
        };
        let (cpu, wanted) = (profile.cpu_millis.into(), want.min_cpu_millis.into());
        minimum("CPU", cpu, wanted, 1_000, "processors");
        let free = agent.load.disk_available_bytes;
        minimum("MEMORY", profile.memory_bytes, want.min_memory_bytes, 1 << 30, "GiB of memory");
        minimum("DISK", free, want.min_disk_bytes, 1 << 30, "GiB of free disk");
        reasons
    }

    /// An agent can run jobs of this class, whatever its load.
    pub fn fits(&self, agent: &Agent) -> bool {
        self.misfits(agent).is_empty()
    }
}

/// In units with two digits behind the point. What is needed is rounded up, so that it never looks like what is there.
fn hundredths(value: u64, unit: u64, up: bool) -> String {
    let scaled = u128::from(value) * 100;
    let unit = u128::from(unit);
    let all = if up { scaled.div_ceil(unit) } else { scaled / unit };
    format!("{}.{:02}", all / 100, all % 100)
}

/// A job that could be leased, as the claim loads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub job: JobId,
    pub project: ProjectId,
    pub backend: String,
    pub priority: i32,
    pub queued_at: Millis,
    /// The agent that has its caches warm and has room for it now.
    pub preferred: Option<AgentId>,
}

/// How much of the farm a project uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub project: ProjectId,
    pub running: u32,
    /// At least 1.
    pub weight: u32,
    /// Jobs that it may still take: its limit less what runs.
    pub room: u32,
}

/// The order in which an agent takes candidates, at most as many as fit into its free slots.
///
/// One job is given to the project of least weighted use, then its use counts one more; so a project with
/// thousands of jobs never keeps another's waiting. Inside a project: priority, affinity, age.
pub fn rank(candidates: &[Candidate], usages: &[Usage], agent: &Agent, now: Millis) -> Vec<JobId> {
    let mut queues: Vec<(Usage, Vec<&Candidate>)> = usages
        .iter()
        .map(|usage| {
            let mut jobs: Vec<_> = candidates
                .iter()
                .filter(|candidate| {
                    candidate.project == usage.project && !is_kept(candidate, agent.id, now)
                })
                .collect();
            jobs.sort_by_key(|job| {
                (-job.priority, job.preferred != Some(agent.id), job.queued_at, job.job)
            });
            jobs.reverse();
            (*usage, jobs)
        })
        .collect();
    let mut free: std::collections::BTreeMap<&str, u32> = agent
        .profile
        .backends
        .keys()
        .map(|backend| (backend.as_str(), agent.free(backend)))
        .collect();
    let mut order = vec![];
    while let Some((usage, jobs)) = queues
        .iter_mut()
        .filter(|(usage, jobs)| usage.room > 0 && !jobs.is_empty())
        .min_by_key(|(usage, jobs)| {
            let weighted = u64::from(usage.running) * 1_000_000 / u64::from(usage.weight.max(1));
            (jobs.last().map(|job| -job.priority), weighted, jobs.last().map(|job| job.queued_at))
        })
    {
        let Some(job) = jobs.pop() else { break };
        let Some(slots) = free.get_mut(job.backend.as_str()).filter(|slots| **slots > 0) else {
            continue;
        };
        *slots -= 1;
        usage.running += 1;
        usage.room -= 1;
        order.push(job.job);
    }
    order
}

/// Another agent with warm caches has room for it, and it has not waited long.
fn is_kept(candidate: &Candidate, agent: AgentId, now: Millis) -> bool {
    candidate.preferred.is_some_and(|preferred| preferred != agent)
        && now.saturating_sub(candidate.queued_at) < STICKY_MS
}

/// Whether an agent is given jobs at all.
pub fn admits(agent: &Agent, now: Millis) -> bool {
    agent.online && agent.admission.clone().at(now) == Admission::Open
}

#[cfg(test)]
mod tests;
