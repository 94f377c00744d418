//! kill -9 of a server in the middle of what it takes in: another goes on.

use crate::{
    farm::{Farm, SERVERS},
    harness::{BUILD, id},
    process::until,
};

const LINES: usize = 1_000;
const BIG: usize = 96_000_000;

/// The server whose folder holds part of an upload.
fn takes_upload(farm: &Farm) -> Option<usize> {
    (0..SERVERS).find(|server| {
        let parts = std::fs::read_dir(farm.data(*server).join("uploads"));
        parts
            .into_iter()
            .flatten()
            .flatten()
            .any(|part| part.metadata().is_ok_and(|part| (1..BIG as u64).contains(&part.len())))
    })
}

#[test]
fn an_upload_and_a_log_survive_their_server() {
    let Some(mut farm) = Farm::start("") else { return };
    let port = farm.balancer.port;
    farm.start_agent(port);
    let make = format!(
        "seq 1 {BIG} | head -c {BIG} > big; i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.004; done"
    );
    let jobs = format!(
        "[[jobs]]\nname = \"make\"\nbackend = \"shell\"\nscript = \"{make}\"\nartifacts = [\"big\"]\n"
    );
    let build = farm.submit(port, &jobs);
    let job = id(&farm.job(port, &build, "make")).to_owned();
    let mut follower = farm.background("follow", port, &["logs", "-f", &job]);
    until("the middle of the log", BUILD, || (follower.out().len() > 2_000).then_some(()));
    // One connection carries the log: one of these three kills hits its server.
    for server in 0..SERVERS {
        farm.kill_server(server);
        farm.start_server(server);
    }
    let server = until("the middle of the upload", BUILD, || takes_upload(&farm));
    farm.kill_server(server);

    let seen = farm.done(port, &build);
    assert_eq!(seen["build"]["state"], "succeeded", "{seen:#}");
    assert_eq!(seen["jobs"][0]["attempt"], 1, "{seen:#}");
    let wanted = (0..LINES).fold(String::new(), |log, i| log + &format!("line {i}\n"));
    assert!(follower.wait(BUILD).success(), "{}", follower.said());
    assert_eq!(String::from_utf8_lossy(&follower.out()), wanted);
    let into = farm.path("got");
    farm.cli(port, &["artifacts", "get", &build, "big", "-o", &into.display().to_string()]);
    let mut content = (1..).flat_map(|n: u32| format!("{n}\n").into_bytes());
    let got = std::fs::read(&into).unwrap();
    assert_eq!(got.len(), BIG);
    assert!(got.iter().all(|byte| content.next() == Some(*byte)), "other bytes than the job made");
    farm.start_server(server);
    farm.finish();
}
