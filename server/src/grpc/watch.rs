//! The events of a build as a stream.
//!
//! The stream is pulled: it reads rows when its reader has room, holds one batch at most, and slows nobody. Hints only
//! say when to look again; without any it looks every few seconds.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use futures::{Stream, stream};
use kiln_core::{
    event::{Change, Record},
    id::{AgentId, BuildId},
};
use kiln_proto::{convert, v1};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::status;
use crate::{
    app::{self, App},
    wake::{Subscription, Topic},
};

/// Events read at once.
const BATCH: u32 = 200;

/// One reader of the events of a build.
#[derive(Debug)]
pub(super) struct Watch {
    app: App,
    build: BuildId,
    after: i64,
    read: VecDeque<Record>,
    agents: HashMap<AgentId, String>,
    hints: Subscription,
    /// How long it trusts the hints.
    recheck: Duration,
    stop: CancellationToken,
    ended: bool,
}

impl Watch {
    pub(super) fn new(app: App, build: BuildId, after: i64, stop: CancellationToken) -> Self {
        // Before the first read, so that nothing falls in between.
        let hints = app.subscribe(&[Topic::Build(build)]);
        let recheck = app.timing().sweep;
        let (read, agents) = (VecDeque::new(), HashMap::new());
        Self { app, build, after, read, agents, hints, recheck, stop, ended: false }
    }

    pub(super) fn stream(
        self,
    ) -> impl Stream<Item = Result<v1::WatchBuildResponse, Status>> + Send {
        stream::unfold(self, |mut watch| async move {
            if watch.ended {
                return None;
            }
            let item = watch.next().await.transpose()?;
            watch.ended = item.is_err();
            Some((item, watch))
        })
    }

    /// The next event; nothing after the last one of a build that is done.
    async fn next(&mut self) -> Result<Option<v1::WatchBuildResponse>, Status> {
        loop {
            if let Some(record) = self.read.pop_front() {
                self.after = record.number;
                let event = self.show(record).await?;
                return Ok(Some(v1::WatchBuildResponse { event: Some(event) }));
            }
            self.read.extend(self.app.events(self.build, self.after, BATCH).await?);
            if !self.read.is_empty() {
                continue;
            }
            let row = self.app.build(self.build).await?.build;
            if row.last_event > self.after {
                continue;
            }
            if row.state().is_done() {
                return Ok(None);
            }
            tokio::select! {
                () = self.stop.cancelled() => return Err(status::going_away()),
                () = self.hints.changed() => {}
                () = tokio::time::sleep(self.recheck) => {}
            }
        }
    }

    async fn show(&mut self, record: Record) -> Result<v1::Event, Status> {
        let agent = match &record.change {
            Change::Job(change) => change.agent,
            _ => None,
        };
        let name = match agent {
            Some(id) => Some(self.name(id).await?),
            None => None,
        };
        Ok(convert::event(record, name))
    }

    /// The name of an agent; of one that was removed, its id.
    async fn name(&mut self, id: AgentId) -> Result<String, Status> {
        if let Some(name) = self.agents.get(&id) {
            return Ok(name.clone());
        }
        let name = match self.app.agent(id).await {
            Ok(row) => row.name,
            Err(app::Error::NotFound { .. }) => id.to_string(),
            Err(error) => return Err(error.into()),
        };
        self.agents.insert(id, name.clone());
        Ok(name)
    }
}
