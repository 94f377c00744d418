//! Servers are stopped and started one after the other while clients and agents are at work: nobody notices.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::TryStreamExt;
use kiln_sdk::{Client, LogRequest, Options, v1};
use tokio::{runtime::Runtime, time::timeout};

use crate::{
    farm::{Farm, SERVERS},
    harness::BUILD,
    process::until,
};

const CLIENTS: usize = 3;
/// Builds that must have ended between two restarts, so that each happens under load.
const BETWEEN: usize = 4;

/// A job that leaves a line where it ran: one a run.
fn job(marks: &std::path::Path, build: &str) -> v1::JobSpec {
    let mark = marks.join(build);
    v1::JobSpec {
        name: "only".into(),
        backend: "shell".into(),
        script: format!("echo ran >> {}; echo hello from {build}", mark.display()),
        ..Default::default()
    }
}

/// Submits, watches to the end and reads the log; each call must succeed.
async fn one(client: &Client, marks: &std::path::Path, name: &str) -> Result<(), String> {
    let said = |what: &str| {
        let what = format!("{name}: {what}");
        move |error: kiln_sdk::Error| format!("{what}: {error:?}")
    };
    let spec =
        v1::BuildSpec { title: name.into(), jobs: vec![job(marks, name)], ..Default::default() };
    let request = v1::SubmitBuildRequest { spec: Some(spec), ..Default::default() };
    let build = client.submit(request).await.map_err(said("submit"))?.build.unwrap_or_default();
    let events: Vec<_> = client.watch(&build.id, 0).try_collect().await.map_err(said("watch"))?;
    let numbers: Vec<_> = events.iter().map(|event| event.number).collect();
    let wanted: Vec<_> = (1..=i64::try_from(events.len()).unwrap_or(0)).collect();
    if numbers != wanted {
        return Err(format!("{name}: events {numbers:?}"));
    }
    let request = v1::GetBuildRequest { build: build.id };
    let seen = client.get_build(request).await.map_err(said("get"))?;
    let [job] = seen.jobs.as_slice() else { return Err(format!("{name}: {seen:?}")) };
    let state = seen.build.as_ref().map(v1::Build::state);
    if state != Some(v1::BuildState::Succeeded) || job.attempt != 1 {
        return Err(format!("{name}: {seen:?}"));
    }
    let log = client.logs(LogRequest { job: job.id.clone(), ..Default::default() });
    let pieces: Vec<_> = log.try_collect().await.map_err(said("logs"))?;
    let log: Vec<u8> = pieces.iter().flat_map(|piece| piece.data.to_vec()).collect();
    if log == format!("hello from {name}\n").into_bytes() {
        Ok(())
    } else {
        Err(format!("{name}: log {:?}", String::from_utf8_lossy(&log)))
    }
}

#[test]
fn a_rolling_restart_is_not_noticed() {
    let Some(mut farm) = Farm::start("") else { return };
    let port = farm.balancer.port;
    farm.start_agent(port);
    farm.start_agent(port);
    let marks = farm.path("marks");
    std::fs::create_dir(&marks).unwrap();

    let runtime = Runtime::new().unwrap();
    let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let options = Options::new(format!("http://127.0.0.1:{port}")).token(farm.token());
            let (stop, ended, marks) = (Arc::clone(&stop), Arc::clone(&ended), marks.clone());
            runtime.spawn(async move {
                let client = Client::lazy(options).map_err(|error| format!("{error:?}"))?;
                let mut builds = vec![];
                while !stop.load(Ordering::SeqCst) {
                    let name = format!("client-{n}-build-{}", builds.len());
                    let done = timeout(BUILD, one(&client, &marks, &name)).await;
                    done.map_err(|_| format!("{name}: not within {BUILD:?}"))??;
                    builds.push(name);
                    ended.fetch_add(1, Ordering::SeqCst);
                }
                Ok::<_, String>(builds)
            })
        })
        .collect();
    let more = |clients: &[tokio::task::JoinHandle<_>]| {
        let seen = ended.load(Ordering::SeqCst);
        until("more builds", BUILD, || {
            let failed = clients.iter().any(tokio::task::JoinHandle::is_finished);
            (failed || ended.load(Ordering::SeqCst) >= seen + BETWEEN).then_some(())
        });
    };
    more(&clients);
    for server in 0..SERVERS {
        farm.stop_server(server);
        more(&clients);
        farm.start_server(server);
        more(&clients);
    }
    stop.store(true, Ordering::SeqCst);
    let mut builds = vec![];
    for client in clients {
        let done = runtime.block_on(async { timeout(BUILD, client).await.unwrap().unwrap() });
        builds.extend(done.unwrap_or_else(|failed| panic!("{failed}")));
    }
    assert!(builds.len() > SERVERS * BETWEEN, "{}", builds.len());
    for build in &builds {
        let ran = std::fs::read_to_string(marks.join(build)).unwrap();
        assert_eq!(ran, "ran\n", "{build} ran more than once");
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
    farm.finish();
}
