use std::collections::BTreeMap;

use uuid::Uuid;

use super::*;
use crate::agent::{Offer, Profile};

fn agent(n: u128, slots: u32) -> Agent {
    let offer = Offer { slots, operations: ["script".to_owned()].into(), ..Offer::default() };
    Agent {
        id: AgentId::from_uuid(Uuid::from_u128(n)),
        name: format!("agent-{n}"),
        admission: Admission::Open,
        online: true,
        profile: Profile {
            arch: "x86_64".into(),
            backends: [("shell".to_owned(), offer)].into(),
            ..Profile::default()
        },
        load: crate::agent::Load::default(),
        busy: BTreeMap::new(),
    }
}

fn project(n: u128) -> ProjectId {
    ProjectId::from_uuid(Uuid::from_u128(n))
}

fn candidate(job: u128, project_number: u128, priority: i32) -> Candidate {
    Candidate {
        job: JobId::from_uuid(Uuid::from_u128(job)),
        project: project(project_number),
        backend: "shell".into(),
        priority,
        queued_at: i64::try_from(job).unwrap(),
        preferred: None,
    }
}

fn usage(n: u128, running: u32, weight: u32) -> Usage {
    Usage { project: project(n), running, weight, room: u32::MAX }
}

fn jobs(order: &[JobId]) -> Vec<u128> {
    order.iter().map(|job| job.uuid().as_u128()).collect()
}

#[test]
fn three_thousand_jobs_of_one_project_do_not_keep_another_waiting() {
    let mut all: Vec<_> = (1..=3_000).map(|job| candidate(job, 1, 0)).collect();
    all.push(candidate(9_999, 2, 0));
    let order = rank(&all, &[usage(1, 0, 100), usage(2, 0, 100)], &agent(1, 4), 10_000);
    assert_eq!(jobs(&order), [1, 9_999, 2, 3]);
}

#[test]
fn weights_share_the_slots() {
    let all: Vec<_> = (1..=20).map(|job| candidate(job, 1 + job % 2, 0)).collect();
    let order = rank(&all, &[usage(1, 0, 100), usage(2, 0, 300)], &agent(1, 8), 100);
    let second = order.iter().filter(|job| job.uuid().as_u128() % 2 == 1).count();
    assert_eq!((order.len(), second), (8, 6));
}

#[test]
fn priority_goes_before_fairness_and_age() {
    let all = [candidate(1, 1, 0), candidate(2, 2, 5)];
    let order = rank(&all, &[usage(1, 0, 100), usage(2, 50, 100)], &agent(1, 2), 100);
    assert_eq!(jobs(&order), [2, 1]);
}

#[test]
fn limits_of_project_and_agent_hold() {
    let all: Vec<_> = (1..=5).map(|job| candidate(job, 1, 0)).collect();
    let limited = Usage { room: 2, ..usage(1, 0, 100) };
    assert_eq!(rank(&all, &[limited], &agent(1, 4), 100).len(), 2);
    let mut busy = agent(1, 4);
    busy.busy.insert("shell".into(), 3);
    assert_eq!(rank(&all, &[usage(1, 3, 100)], &busy, 100).len(), 1);
}

#[test]
fn a_warm_agent_is_waited_for_but_not_long() {
    let warm =
        Candidate { preferred: Some(agent(2, 1).id), queued_at: 1_000, ..candidate(1, 1, 0) };
    let all = [warm];
    let usages = [usage(1, 0, 100)];
    assert!(rank(&all, &usages, &agent(1, 1), 1_000).is_empty());
    assert_eq!(rank(&all, &usages, &agent(2, 1), 1_000).len(), 1);
    assert_eq!(rank(&all, &usages, &agent(1, 1), 1_000 + STICKY_MS).len(), 1);
}

#[test]
fn misfits_name_what_is_missing() {
    let mut spec = JobSpec { backend: "shell".into(), ..JobSpec::default() };
    spec.constraints.arch = "aarch64".into();
    spec.constraints.labels = [("kvm".to_owned(), String::new())].into();
    spec.constraints.min_disk_bytes = 1;
    spec.resources.memory_bytes = 1 << 30;
    let codes: Vec<_> =
        Class::of(&spec).misfits(&agent(1, 1)).into_iter().map(|reason| reason.code).collect();
    assert_eq!(codes, ["FEATURES", "ARCH", "LABEL", "DISK"]);
    assert!(
        Class::of(&JobSpec { backend: "shell".into(), ..JobSpec::default() }).fits(&agent(1, 1))
    );
}
