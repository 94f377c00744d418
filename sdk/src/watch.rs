//! The events of a build as one stream. After a cut it goes on behind the last number that was seen: no event is missed,
//! none comes twice.

use futures::{StreamExt, stream, stream::BoxStream};
use tonic::{Status, Streaming};

use crate::{
    Client, Error,
    retry::{Backoff, is_resumable},
    v1::{
        BuildState, Event, GetBuildRequest, WatchBuildRequest, WatchBuildResponse, event::Change,
    },
};

impl Client {
    /// The events of a build with numbers larger than `after`; ends after the build is done.
    pub fn watch(&self, build: &str, after: i64) -> BoxStream<'static, Result<Event, Error>> {
        let watch = Watch {
            client: self.clone(),
            build: build.to_owned(),
            after,
            stream: None,
            backoff: Backoff::new(self.options().resume),
            done: false,
        };
        stream::try_unfold(watch, |mut watch| async move {
            Ok(watch.next().await?.map(|event| (event, watch)))
        })
        .boxed()
    }
}

struct Watch {
    client: Client,
    build: String,
    after: i64,
    stream: Option<Streaming<WatchBuildResponse>>,
    backoff: Backoff,
    /// The last event said that the build is done; another round may still follow it.
    done: bool,
}

impl Watch {
    async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            let status = match self.step().await {
                Ok(Some(event)) if event.number <= self.after => continue,
                Ok(Some(event)) => return Ok(Some(self.seen(event))),
                Ok(None) if self.is_over().await? => return Ok(None),
                Ok(None) => None,
                Err(status) if is_resumable(&status) => Some(status),
                Err(status) => return Err(status.into()),
            };
            self.stream = None;
            if !self.backoff.wait(status.as_ref()).await {
                let status = status.unwrap_or_else(|| {
                    Status::unavailable("the server keeps ending the stream of events")
                });
                return Err(status.into());
            }
            tracing::debug!(after = self.after, "the stream of events is opened again");
        }
    }

    async fn step(&mut self) -> Result<Option<Event>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let request = WatchBuildRequest { build: self.build.clone(), after: self.after };
                let call = async { self.client.builds().watch_build(request).await };
                none.insert(self.client.once(call).await?)
            }
        };
        Ok(stream.message().await?.and_then(|answer| answer.event))
    }

    fn seen(&mut self, event: Event) -> Event {
        self.after = event.number;
        self.backoff.progress();
        self.done = matches!(&event.change, Some(Change::BuildChanged(c)) if is_done(c.state()));
        event
    }

    /// The stream ended well: because the build is done, or because a server that stops ends its streams.
    async fn is_over(&self) -> Result<bool, Error> {
        if self.done {
            return Ok(true);
        }
        let request = GetBuildRequest { build: self.build.clone() };
        let build = self.client.get_build(request).await?.build.unwrap_or_default();
        Ok(is_done(build.state()) && build.last_event <= self.after)
    }
}

const fn is_done(state: BuildState) -> bool {
    matches!(state, BuildState::Succeeded | BuildState::Failed | BuildState::Cancelled)
}
