//! What can be done to a Kiln, and how it is undone.

use std::{fs::File, io::Write, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::world::World;

/// A process that is told to end must have ended by then: twice the bound that the server is given, on a busy machine.
const STOP: Duration = Duration::from_mins(1);

/// Whom it hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Server,
    /// The first one, which has the job.
    Agent,
    Postgres,
}

/// Between whom the network is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// The first agent and the server.
    Agent,
    /// The server and Postgres.
    Database,
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All connections are reset, new ones are refused.
    Refuse,
    /// All connections are reset, new ones are let through.
    Reset,
    /// Nothing arrives, nothing is said of it; later all of it arrives.
    Silent,
    /// As if one side of each connection had gone without a word: they stay silent for ever, new ones work.
    HalfOpen,
    /// A few KiB a second.
    Slow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL.
    Kill(Who),
    /// SIGTERM; its end is waited for.
    Terminate(Who),
    /// SIGSTOP, later SIGCONT.
    Freeze(Who),
    /// Not a byte is left where it keeps its data.
    Fill(Who),
    /// Its clock of the day jumps by so many seconds, and stays there. The monotonic one does not.
    Jump(Who, i64),
    Cut(Line, Cut),
}

impl Blow {
    pub(super) async fn strike(self, world: &mut World) -> Result<()> {
        match self {
            Self::Kill(Who::Server) => world.server_process()?.kill(),
            Self::Kill(Who::Agent) => world.agent_process(0)?.kill(),
            Self::Kill(Who::Postgres) => {
                world.postgres()?.kill();
                Ok(())
            }
            Self::Terminate(Who::Server) => {
                let status = world.server_process()?.end_by(Signal::TERM, STOP).await?;
                ensure!(status.success(), "the server ended by SIGTERM with {status}");
                Ok(())
            }
            Self::Terminate(Who::Agent) => {
                let status = world.agent_process(0)?.end_by(Signal::TERM, STOP).await?;
                ensure!(status.success(), "the agent ended by SIGTERM with {status}");
                Ok(())
            }
            // It waits for its clients, and lets nobody in.
            Self::Terminate(Who::Postgres) => world.postgres()?.signal(Signal::TERM),
            Self::Freeze(who) => world.signal(who, Signal::STOP),
            Self::Fill(who) => fill(&world.filler(who)),
            Self::Jump(who, seconds) => world.set_clock(who, seconds),
            Self::Cut(line, cut) => {
                world.line(line)?.cut(cut);
                Ok(())
            }
        }
    }

    pub(super) async fn mend(self, world: &mut World) -> Result<()> {
        match self {
            Self::Kill(Who::Server) | Self::Terminate(Who::Server) => world.start_server().await,
            Self::Kill(Who::Agent) | Self::Terminate(Who::Agent) => world.start_agent(0),
            Self::Kill(Who::Postgres) => world.postgres()?.start().await,
            Self::Terminate(Who::Postgres) => {
                world.postgres()?.stop().await?;
                world.postgres()?.start().await
            }
            Self::Freeze(who) => world.signal(who, Signal::CONT),
            Self::Fill(who) => Ok(std::fs::remove_file(world.filler(who))?),
            Self::Jump(..) => Ok(()),
            Self::Cut(line, _) => {
                world.line(line)?.mend();
                Ok(())
            }
        }
    }
}

/// Writes until there is no room for one byte more.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path).context("the filler")?;
    for size in [1 << 20, 4 << 10, 1] {
        let piece = vec![0; size];
        while file.write_all(&piece).is_ok() {}
    }
    Ok(())
}
