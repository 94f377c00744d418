//! Between replicas, by LISTEN and NOTIFY.
//!
//! Hints reach those of this process directly. What is published is gathered for a few milliseconds and told to the
//! other replicas in one NOTIFY on a connection of its own: one inside a transaction would make commits wait for each
//! other. Where a connection was lost, hints may have been too, so everybody is woken. It knows no table.

use std::{
    collections::BTreeSet,
    fmt::Write,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kiln_core::id::{AgentId, BuildId, LeaseId};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Socket, tls::MakeTlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{Local, Subscription, Topic, Wake};
use crate::store::sql::{Ssl, ssl};

const CHANNEL: &str = "kiln_wake";
/// How long hints are gathered.
const GATHER: Duration = Duration::from_millis(4);
/// Topics in one notification; more are `all`. Postgres takes less than 8,000 bytes, a topic is 34.
const MOST: usize = 200;
/// A connection that was silent for longer is asked whether it lives, and has as long to answer.
const SILENCE: Duration = Duration::from_secs(10);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(5);

/// Wakes in this process and in the other replicas. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Postgres {
    local: Local,
    outbox: Arc<Outbox>,
}

/// What the other replicas are to be told.
#[derive(Debug, Default)]
struct Outbox {
    topics: Mutex<BTreeSet<Topic>>,
    filled: Notify,
}

/// The connection broke, or the server is stopping it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database's URL is not understood by the listener")]
    Url(#[source] tokio_postgres::Error),
    #[error("the connection for wake-ups can't be secured")]
    Ssl(#[from] ssl::Error),
    #[error("the connection for wake-ups failed")]
    Connection(#[from] tokio_postgres::Error),
    #[error("the connection for wake-ups was silent for {} s", SILENCE.as_secs())]
    Silent(#[from] tokio::time::error::Elapsed),
}

impl Postgres {
    /// Listens from the return on, until the shutdown: a scan that follows misses nothing. `replica` tells this
    /// process from the others.
    pub async fn start(
        url: &str,
        replica: Uuid,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let (url, ssl) = Ssl::of(url)?;
        let mut config: Config = url.parse().map_err(Error::Url)?;
        let tls = ssl.connector(&mut config)?;
        config.application_name("kiln-wake").connect_timeout(SILENCE).keepalives_idle(SILENCE);
        let wake = Self { local: Local::default(), outbox: Arc::default() };
        let link = timeout(SILENCE, Link::open(&config, &tls)).await??;
        let listener = Listener { config, tls, replica, wake: wake.clone() };
        tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = listener.run(link) => {}
            }
        });
        Ok(wake)
    }
}

impl Wake for Postgres {
    fn publish(&self, topics: &[Topic]) {
        self.local.publish(topics);
        self.tell_others(topics);
    }

    fn tell_others(&self, topics: &[Topic]) {
        self.outbox.add(topics);
    }

    fn subscribe(&self, topics: &[Topic]) -> Subscription {
        self.local.subscribe(topics)
    }
}

impl Outbox {
    fn add(&self, topics: &[Topic]) {
        let mut held = self.lock();
        held.extend(topics);
        if held.len() > MOST || held.contains(&Topic::All) {
            *held = [Topic::All].into();
        }
        drop(held);
        self.filled.notify_one();
    }

    fn take(&self) -> BTreeSet<Topic> {
        std::mem::take(&mut *self.lock())
    }

    /// Nothing panics while it holds this lock; a poisoned set is still whole.
    fn lock(&self) -> MutexGuard<'_, BTreeSet<Topic>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that listens.
struct Link {
    client: Client,
    connection: Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>,
}

impl Link {
    async fn open(config: &Config, tls: &MakeRustlsConnect) -> Result<Self, Error> {
        let (client, mut connection) = config.connect(tls.clone()).await?;
        // The client waits for an answer that only the connection reads. No hint is lost on the way: what comes before
        // the answer is about what was committed before, and is found by the scan.
        let read = async {
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return error,
                    None => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            listening = client.batch_execute("LISTEN kiln_wake") => listening?,
            error = read => return Err(error.into()),
        }
        Ok(Self { client, connection })
    }
}

struct Listener {
    config: Config,
    tls: MakeRustlsConnect,
    replica: Uuid,
    wake: Postgres,
}

impl Listener {
    async fn run(self, link: Link) {
        let mut link = Some(link);
        let mut backoff = FIRST_BACKOFF;
        loop {
            let opened = match link.take() {
                Some(link) => Ok(link),
                None => self.reopen().await,
            };
            let ended = match opened {
                Ok(link) => {
                    backoff = FIRST_BACKOFF;
                    self.serve(link).await
                }
                Err(error) => error,
            };
            tracing::warn!(error = &ended as &dyn std::error::Error, "wake-ups are interrupted");
            sleep(backoff).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// Hints of the time between are lost, here and at the others.
    async fn reopen(&self) -> Result<Link, Error> {
        let link = timeout(SILENCE, Link::open(&self.config, &self.tls)).await??;
        tracing::info!("wake-ups go on");
        self.wake.publish(&[Topic::All]);
        Ok(link)
    }

    async fn serve(&self, link: Link) -> Error {
        let Link { client, mut connection } = link;
        let receive = async {
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(hint))) => self.hear(hint.payload()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Error::from(error),
                    // The client is told that its connection is closed, and ends.
                    None => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            error = receive => error,
            error = self.send(&client) => error,
        }
    }

    async fn send(&self, client: &Client) -> Error {
        loop {
            let filled = timeout(SILENCE, self.wake.outbox.filled.notified()).await.is_ok();
            if filled {
                sleep(GATHER).await;
            }
            let topics = self.wake.outbox.take();
            let payload = encode(self.replica, &topics);
            let said = async {
                if topics.is_empty() {
                    client.batch_execute("").await
                } else {
                    notify(client, payload).await
                }
            };
            match timeout(SILENCE, said).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.into(),
                Err(silent) => return silent.into(),
            }
        }
    }

    fn hear(&self, payload: &str) {
        if let Some((replica, topics)) = decode(payload)
            && replica != self.replica
        {
            self.wake.local.publish(&topics);
        }
    }
}

async fn notify(client: &Client, payload: String) -> Result<(), tokio_postgres::Error> {
    client.execute("SELECT pg_notify($1, $2)", &[&CHANNEL, &payload]).await.map(drop)
}

/// `<replica>` and a word for each topic: `all`, `q`, or a letter and an id.
fn encode(replica: Uuid, topics: &BTreeSet<Topic>) -> String {
    let mut text = replica.simple().to_string();
    for topic in topics {
        // Writing to a string can't fail.
        let _ = match topic {
            Topic::All => write!(text, " all"),
            Topic::Queue => write!(text, " q"),
            Topic::Build(id) => write!(text, " b{}", id.uuid().simple()),
            Topic::Agent(id) => write!(text, " a{}", id.uuid().simple()),
            Topic::Log(id) => write!(text, " l{}", id.uuid().simple()),
        };
    }
    text
}

/// A word that is not understood comes from another version: anything may have changed.
fn decode(payload: &str) -> Option<(Uuid, Vec<Topic>)> {
    let mut words = payload.split(' ');
    let replica = words.next()?.parse().ok()?;
    Some((replica, words.map(|word| topic(word).unwrap_or(Topic::All)).collect()))
}

fn topic(word: &str) -> Option<Topic> {
    let id = || word.get(1..).and_then(|hex| Uuid::try_parse(hex).ok());
    match word.as_bytes().first()? {
        b'q' if word.len() == 1 => Some(Topic::Queue),
        b'b' => id().map(|id| Topic::Build(BuildId::from_uuid(id))),
        b'a' => id().map(|id| Topic::Agent(AgentId::from_uuid(id))),
        b'l' => id().map(|id| Topic::Log(LeaseId::from_uuid(id))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_round_trip_and_fit_into_a_notification() {
        let replica = Uuid::from_u128(9);
        let id = Uuid::from_u128;
        let topics: BTreeSet<_> = [
            Topic::Queue,
            Topic::Build(BuildId::from_uuid(id(1))),
            Topic::Agent(AgentId::from_uuid(id(2))),
            Topic::Log(LeaseId::from_uuid(id(3))),
        ]
        .into();
        let (from, heard) = decode(&encode(replica, &topics)).unwrap();
        assert_eq!((from, heard.into_iter().collect()), (replica, topics));
        assert_eq!(decode(&format!("{} x7", replica.simple())), Some((replica, vec![Topic::All])));
        assert_eq!(decode("nobody q"), None);

        let outbox = Outbox::default();
        let builds =
            |n| (0..n).map(|n| Topic::Build(BuildId::from_uuid(id(n)))).collect::<Vec<_>>();
        outbox.add(&builds(MOST as u128));
        let full = outbox.take();
        assert_eq!(full.len(), MOST);
        assert!(encode(replica, &full).len() < 8_000);
        outbox.add(&builds(MOST as u128 + 1));
        assert_eq!(outbox.take(), [Topic::All].into());
    }
}
