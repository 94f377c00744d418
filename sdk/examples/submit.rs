//! Submits a build of one job, follows its log, and prints how it ended.
//!
//! `cargo run -p kiln-sdk --example submit -- http://127.0.0.1:7420 TOKEN-FILE`

use std::io::Write;

use futures::TryStreamExt;
use kiln_sdk::{Client, LogRequest, Options, v1};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let server = args.next().unwrap_or_else(|| "http://127.0.0.1:7420".into());
    let mut options = Options::new(server);
    if let Some(file) = args.next() {
        options = options.token(std::fs::read_to_string(file)?.trim());
    }
    let client = Client::connect(options).await?;

    let job = v1::JobSpec {
        name: "hello".into(),
        backend: "shell".into(),
        script: "echo hello from $(uname -m)".into(),
        ..Default::default()
    };
    let spec = v1::BuildSpec { title: "example".into(), jobs: vec![job], ..Default::default() };
    let request = v1::SubmitBuildRequest { spec: Some(spec), ..Default::default() };
    let build = client.submit(request).await?.build.unwrap_or_default();

    let seen = client.get_build(v1::GetBuildRequest { build: build.id.clone() }).await?;
    let job = seen.jobs.first().map(|job| job.id.clone()).unwrap_or_default();
    let mut log = client.logs(LogRequest { job, ..Default::default() });
    while let Some(piece) = log.try_next().await? {
        std::io::stdout().write_all(&piece.data)?;
    }

    let mut events = client.watch(&build.id, 0);
    while let Some(event) = events.try_next().await? {
        if let Some(v1::event::Change::BuildChanged(change)) = event.change {
            writeln!(std::io::stdout(), "{} is {:?}", build.id, change.state())?;
        }
    }
    Ok(())
}
