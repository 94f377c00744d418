//! A job that is a container, and the supervisor as the reader of its output. The container itself belongs to the engine:
//! it is removed by the agent, after the result and the log are acknowledged.

use std::{fmt, future::Future, io, pin::Pin, time::Duration};

use bollard::{
    Docker,
    models::ContainerState,
    query_parameters::{
        AttachContainerOptions, InspectContainerOptions, StartContainerOptions,
        WaitContainerOptions,
    },
};
use futures::StreamExt;
use tokio::{net::unix::pipe, time::Instant};
use tokio_util::io::StreamReader;

use super::{
    exit::{Ending, Exit},
    spec::Outlet,
    watch::{Job, Output},
};
use crate::backend::docker::{Engine, end};

/// All that a dead container wrote is in the FIFO already, which ends behind it. Beyond it something else holds the FIFO.
const FIFO_LINGER: Duration = Duration::from_secs(5);
/// What it wrote comes through the engine, which may be busy.
const ATTACH_LINGER: Duration = Duration::from_secs(5);
/// An engine that is being replaced comes back within it; its containers may go on meanwhile.
const ENGINE_PATIENCE: Duration = Duration::from_mins(5);
const ENGINE_RETRY: Duration = Duration::from_secs(1);

/// What the engine says of the container that is over, or why it says nothing.
type Verdict = Result<ContainerState, String>;

/// The running container.
pub(super) struct Container {
    docker: Docker,
    id: String,
    over: Pin<Box<dyn Future<Output = Verdict>>>,
    verdict: Option<Verdict>,
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Container {
    /// Starts it. An `Err` is the end of the job already.
    pub(super) async fn start(
        engine: &Engine,
        id: &str,
        outlet: &Outlet,
    ) -> Result<(Self, Output), Exit> {
        let broken = |error: String| Exit::new(Ending::Broken, error);
        let docker = engine.connect().map_err(|error| broken(error.to_string()))?;
        // The reader comes first: output of the first moment would be lost, or its writer wait for ever.
        let output = match outlet {
            Outlet::Fifo(path) => {
                let named = |error| broken(format!("{}: {error}", path.display()));
                let reader = pipe::OpenOptions::new().open_receiver(path).map_err(named)?;
                // So that it has no end between two writers, nor before the first.
                let writer = pipe::OpenOptions::new().open_sender(path).map_err(named)?;
                Output::fed(reader, FIFO_LINGER, writer)
            }
            Outlet::Attach => attach(&docker, id).await.map_err(|error| {
                broken(format!("the container's output can't be read: {error}"))
            })?,
        };
        docker
            .start_container(id, None::<StartContainerOptions>)
            .await
            .map_err(|error| not_started(&error))?;
        let over = Box::pin(over(docker.clone(), id.to_owned()));
        Ok((Self { docker, id: id.to_owned(), over, verdict: None }, output))
    }
}

async fn attach(docker: &Docker, id: &str) -> Result<Output, bollard::errors::Error> {
    let options = AttachContainerOptions {
        stream: true,
        stdout: true,
        stderr: true,
        ..AttachContainerOptions::default()
    };
    let attached = docker.attach_container(id, Some(options)).await?;
    let bytes = attached.output.map(|piece| {
        piece.map(bollard::container::LogOutput::into_bytes).map_err(io::Error::other)
    });
    // Its input side stays open as long as the stream: the engine may end both when one is closed.
    let (reader, input) = (StreamReader::new(bytes), attached.input);
    Ok(Output::holding(reader, ATTACH_LINGER, input))
}

/// The engine refuses to start what it can't execute; all else is its own trouble.
fn not_started(error: &bollard::errors::Error) -> Exit {
    let text = error.to_string();
    let executes = text.contains("exec: ") || text.contains("unable to start container process");
    if executes && (text.contains("not found") || text.contains("no such file or directory")) {
        let message = format!("program not found in the image: {}", end(&text));
        return Exit { code: Some(127), ..Exit::new(Ending::NotStarted, message) };
    }
    if executes && text.contains("permission denied") {
        let message = format!("program is not executable in the image: {}", end(&text));
        return Exit { code: Some(126), ..Exit::new(Ending::NotStarted, message) };
    }
    Exit::new(Ending::Broken, format!("the container can't be started: {}", end(&text)))
}

/// Waits until the container is over. It is started, so that not running is over; and it is never removed by itself, so
/// that its end can't be missed.
async fn over(docker: Docker, id: String) -> Verdict {
    let mut answered = Instant::now();
    let mut interrupted = false;
    loop {
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        // A non-zero exit is an `Err` here too: what it was is asked below.
        let waited = docker.wait_container(&id, Some(options)).next().await;
        let state = docker.inspect_container(&id, None::<InspectContainerOptions>).await;
        match state.map(|container| container.state.unwrap_or_default()) {
            Ok(state) if state.running != Some(true) => {
                let failed = state.exit_code != Some(0);
                if interrupted && failed {
                    return Err("the engine was restarted and ended the container".to_owned());
                }
                return Ok(state);
            }
            Ok(_) => answered = Instant::now(),
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {
                return Err("somebody removed the container".to_owned());
            }
            Err(error) if answered.elapsed() > ENGINE_PATIENCE => {
                return Err(format!("the engine does not answer: {error}"));
            }
            Err(_) => {}
        }
        interrupted |= !matches!(
            waited,
            Some(Ok(_) | Err(bollard::errors::Error::DockerContainerWaitError { .. }))
        );
        tokio::time::sleep(ENGINE_RETRY).await;
    }
}

impl Job for Container {
    async fn ended(&mut self) {
        if self.verdict.is_none() {
            self.verdict = Some(self.over.as_mut().await);
        }
    }

    fn is_deserted(&mut self) -> bool {
        self.verdict.is_some()
    }

    async fn terminate(&mut self) {
        Engine::signal(&self.docker, &self.id, "SIGTERM").await;
    }

    async fn kill(&mut self) {
        Engine::signal(&self.docker, &self.id, "SIGKILL").await;
    }

    async fn close(&mut self) -> Exit {
        match self.verdict.take() {
            Some(Ok(state)) => Exit {
                code: state.exit_code.and_then(|code| i32::try_from(code).ok()),
                oom: state.oom_killed == Some(true),
                ..Exit::new(Ending::Exited, "ended without an exit code")
            },
            Some(Err(why)) => Exit::new(Ending::Broken, why),
            None => Exit::new(Ending::Broken, "the container did not end"),
        }
    }
}
