//! AgentService: enrolment, and the frames of a session.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream::BoxStream};
use kiln_core::{id::LeaseId, session::Report, spec::Violation};
use kiln_proto::{PROTOCOL_MAX, PROTOCOL_MIN, convert, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{auth, bucket::Buckets, refuse, status};
use crate::{
    app::{self, Certified, Given, Hello, Principal},
    authority,
    config::Limits,
    live::Live,
    session::{self, Error, Frame, Parts, Word},
};

/// SHA-256.
const DIGEST: usize = 32;
/// Batches of words that wait for the writer; the set behind them holds the rest.
const BATCHES: usize = 2;
const MAX_INSTANCE: usize = 100;
const MAX_REASON: usize = 1_000;

/// See [`v1::agent_service_server::AgentService`].
#[derive(Debug, Clone)]
pub struct Agents {
    parts: Parts,
    tasks: TaskTracker,
    /// Of the frames a second of one session.
    limits: Live<Limits>,
}

impl Agents {
    pub fn new(parts: Parts, tasks: TaskTracker, limits: Live<Limits>) -> Self {
        Self { parts, tasks, limits }
    }

    /// The frames, no faster than allowed: what waits, waits in the agent.
    fn paced<S: Stream>(&self, frames: S) -> impl Stream<Item = S::Item> + use<S> {
        let rate = self.limits.get().frames_per_second;
        let pace = Buckets::new(rate, Duration::from_secs(1), rate).map(Arc::new);
        let clock = Arc::clone(self.parts.app.clock());
        frames.then(move |frame| {
            let (pace, clock) = (pace.clone(), Arc::clone(&clock));
            async move {
                while let Some(Err(wait)) = pace.as_ref().map(|p| p.take((), clock.elapsed())) {
                    tokio::time::sleep(wait).await;
                }
                frame
            }
        })
    }
}

#[tonic::async_trait]
impl v1::agent_service_server::AgentService for Agents {
    type SessionStream = BoxStream<'static, Result<v1::SessionResponse, Status>>;

    async fn enroll_agent(
        &self,
        request: Request<v1::EnrollAgentRequest>,
    ) -> Result<Response<v1::EnrollAgentResponse>, Status> {
        let peer = auth::peer(&request);
        let request = request.into_inner();
        if request.credential_sha256.len() != DIGEST {
            let message = "must be the 32 bytes of a SHA-256";
            return Err(refuse(Violation::new("credential_sha256", message)));
        }
        let app = self.parts.app.from_peer(peer);
        // What can't be certified must not cost a token.
        let key = match &request.certificate_request[..] {
            [] => None,
            key => Some(key_of(key)?),
        };
        let agent = app.enroll(&request.token, &request.name, &request.credential_sha256).await?;
        let certificate = match key {
            Some(key) => match app.certify(agent, &key).await {
                // It knows by the address that it speaks TLS, and to whom is not its matter: to a proxy.
                Err(app::Error::Precondition { code: "NO_AUTHORITY", .. }) => None,
                certified => Some(write_certificate(certified?)),
            },
            None => None,
        };
        Ok(Response::new(v1::EnrollAgentResponse { agent: agent.to_string(), certificate }))
    }

    async fn certify_agent(
        &self,
        request: Request<v1::CertifyAgentRequest>,
    ) -> Result<Response<v1::CertifyAgentResponse>, Status> {
        let caller = auth::caller(&request)?;
        let Principal::Agent { id, .. } = caller.principal else {
            return Err(status::denied("only agents are certified", "enrol an agent first"));
        };
        let key = key_of(&request.get_ref().certificate_request)?;
        let certified = self.parts.app.by(&caller).certify(id, &key).await?;
        let certificate = Some(write_certificate(certified));
        Ok(Response::new(v1::CertifyAgentResponse { certificate }))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let Principal::Agent { id, .. } = auth::principal(&request)? else {
            return Err(status::denied("only agents have sessions", "enrol an agent first"));
        };
        let frames =
            request.into_inner().map(|frame| read(frame.map_err(|status| broken(&status))?));
        let frames = self.paced(frames);
        let (words, said) = mpsc::channel(BATCHES);
        // The answer must be there before anything is awaited: the agent may wait for it to say Hello.
        self.tasks.spawn(session::run(self.parts.clone(), id, frames.boxed(), words));
        let said = ReceiverStream::new(said).flat_map(|batch| {
            futures::stream::iter(match batch {
                Ok(words) => words.into_iter().map(|word| Ok(write(word))).collect(),
                Err(error) => vec![Err(error.into())],
            })
        });
        Ok(Response::new(said.boxed()))
    }
}

fn key_of(request: &[u8]) -> Result<authority::Request, Status> {
    let wrong = |message| refuse(Violation::new("certificate_request", message));
    authority::Request::parse(request).map_err(wrong)
}

fn write_certificate(certified: Certified) -> v1::AgentCertificate {
    let Certified { certificate_pem, renew_at, ends_at, authorities_pem } = certified;
    v1::AgentCertificate { certificate_pem, renew_ms: renew_at, ends_ms: ends_at, authorities_pem }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Frame(violations) => status::invalid(&violations),
            Error::Protocol(_) => status::precondition("PROTOCOL", text),
            Error::Silent => status::closed("NO_HELLO", text),
            Error::Closed => status::closed("SESSION_CLOSED", text),
            Error::Shutdown | Error::Lost => status::going_away(),
            Error::App(error) => error.into(),
        }
    }
}

/// A message that can't be read, or the end of the stream.
fn broken(status: &Status) -> Error {
    match status.code() {
        Code::Internal | Code::OutOfRange => {
            Error::Frame(vec![Violation::new("frame", status.message())])
        }
        _ => Error::Lost,
    }
}

fn read(frame: v1::SessionRequest) -> Result<Frame, Error> {
    use v1::session_request::Frame as Wire;
    let read = match frame.frame {
        None => Err(vec![Violation::new("frame", "is empty, or of a newer protocol")]),
        Some(Wire::Hello(hello)) => return read_hello(hello),
        Some(Wire::Heartbeat(mut beat)) => read_beat(&mut beat),
        Some(Wire::Started(started)) => lease("started.lease", &started.lease).map(Frame::Started),
        Some(Wire::Refused(refused)) => {
            let mut reason = refused.reason;
            reason.truncate(reason.floor_char_boundary(MAX_REASON));
            lease("refused.lease", &refused.lease).map(|lease| Frame::Refused(lease, reason))
        }
        Some(Wire::Finished(finished)) => read_finished(finished),
    };
    read.map_err(Error::Frame)
}

fn lease(field: &str, text: &str) -> convert::Read<LeaseId> {
    convert::id(field, text).map_err(|violation| vec![violation])
}

fn read_beat(beat: &mut v1::Heartbeat) -> convert::Read<Frame> {
    let profile = beat.profile.take();
    let profile = profile.map(|profile| convert::profile("heartbeat.profile", profile));
    let load = convert::load("heartbeat", beat)?;
    Ok(Frame::Heartbeat { load, profile: profile.transpose()? })
}

/// A report that can't be read still ends its lease: else the agent would repeat it for ever.
fn read_finished(finished: v1::Finished) -> convert::Read<Frame> {
    let id = lease("finished.lease", &finished.lease)?;
    let report = match convert::report("finished", finished) {
        Ok((_, report)) => report,
        Err(found) => unusable(&found),
    };
    Ok(Frame::Finished(id, report))
}

fn unusable(found: &[Violation]) -> Report {
    let first = found.iter().take(3).map(|wrong| format!("{}: {}", wrong.field, wrong.message));
    session::unusable(&first.collect::<Vec<_>>().join("; "), std::collections::BTreeMap::new())
}

fn read_hello(hello: v1::Hello) -> Result<Frame, Error> {
    let protocol = protocol(hello.protocol_min, hello.protocol_max)?;
    let mut found = vec![];
    if !(1..=MAX_INSTANCE).contains(&hello.instance.len()) {
        found.push(Violation::new("hello.instance", "must be 1 to 100 bytes"));
    }
    found.extend(convert::unsigned("hello.epoch", hello.epoch).err());
    let profile = match hello.profile {
        Some(profile) => convert::profile("hello.profile", profile),
        None => Err(vec![Violation::new("hello.profile", "must be set")]),
    };
    let journal = convert::journal("hello.journal", hello.journal);
    match (profile, journal) {
        (Ok(profile), Ok(journal)) if found.is_empty() => {
            let (instance, epoch) = (hello.instance, hello.epoch);
            Ok(Frame::Hello { hello: Hello { instance, epoch, profile, journal }, protocol })
        }
        (profile, journal) => {
            found.extend(profile.err().into_iter().chain(journal.err()).flatten());
            Err(Error::Frame(found))
        }
    }
}

/// The newest version that both speak.
fn protocol(min: i32, max: i32) -> Result<i32, Error> {
    let newest = max.min(PROTOCOL_MAX);
    if newest >= min.max(PROTOCOL_MIN) {
        return Ok(newest);
    }
    let older = if max < PROTOCOL_MIN { "agent" } else { "server" };
    Err(Error::Protocol(format!(
        "the agent speaks protocol {min} to {max}, this server {PROTOCOL_MIN} to {PROTOCOL_MAX}; upgrade the {older}"
    )))
}

fn write(word: Word) -> v1::SessionResponse {
    use v1::session_response::Frame as Wire;
    let text = |lease: LeaseId| lease.to_string();
    let frame = match word {
        Word::Welcome { session, protocol, heartbeat, grace, keep, secrets, abandon } => {
            let of = |lease| secrets.get(&lease).into_iter().flatten().map(Into::into).collect();
            let kept = |(lease, cancelling): (LeaseId, bool)| v1::KeptLease {
                lease: lease.to_string(),
                secrets: of(lease),
                cancelling,
            };
            Wire::Welcome(v1::Welcome {
                session: session.to_string(),
                protocol,
                heartbeat_ms: millis(heartbeat),
                grace_ms: millis(grace),
                keep: keep.into_iter().map(kept).collect(),
                abandon: abandon.into_iter().map(text).collect(),
            })
        }
        Word::Assign(session, given) => {
            let Given { assignment, secrets } = *given;
            Wire::Assign(convert::assign(session, assignment, &secrets))
        }
        Word::Ack(lease) => Wire::Ack(v1::Ack { lease: text(lease) }),
        Word::Revoke(lease) => Wire::Revoke(v1::Revoke { lease: text(lease) }),
        Word::Abandon(lease) => Wire::Abandon(v1::Abandon { lease: text(lease) }),
        Word::Drain => Wire::Drain(v1::Drain {}),
        Word::Beat => Wire::Beat(v1::Beat {}),
    };
    v1::SessionResponse { frame: Some(frame) }
}

fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(error: Error) -> Vec<String> {
        match error {
            Error::Frame(found) => found.into_iter().map(|wrong| wrong.field).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_newest_common_protocol_is_spoken() {
        assert_eq!(protocol(PROTOCOL_MIN, PROTOCOL_MAX + 5).unwrap(), PROTOCOL_MAX);
        assert_eq!(protocol(-3, PROTOCOL_MIN).unwrap(), PROTOCOL_MIN);
        for (min, max, who) in [
            (PROTOCOL_MAX + 1, PROTOCOL_MAX + 2, "upgrade the server"),
            (0, PROTOCOL_MIN - 1, "upgrade the agent"),
        ] {
            assert!(protocol(min, max).unwrap_err().to_string().ends_with(who));
        }
        assert!(protocol(5, 1).is_err());
    }

    #[test]
    fn a_wrong_hello_is_refused_field_by_field() {
        let hello = v1::Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            epoch: -1,
            journal: vec![v1::JournalEntry { lease: "x".into(), state: 1 }],
            ..Default::default()
        };
        assert_eq!(
            fields(read_hello(hello).unwrap_err()),
            ["hello.instance", "hello.epoch", "hello.profile", "hello.journal[0].lease"]
        );
        assert_eq!(fields(read(v1::SessionRequest { frame: None }).unwrap_err()), ["frame"]);
    }

    #[test]
    fn a_report_that_cannot_be_read_ends_its_lease_as_a_failure_of_the_machinery() {
        let lease = "lse_00000000000000000000000000000007".to_owned();
        let read = read_finished(v1::Finished { lease, ..Default::default() }).unwrap();
        let Frame::Finished(_, report) = read else { panic!("{read:?}") };
        let kiln_core::outcome::Outcome::Failed { kind, message, .. } = report.outcome else {
            panic!()
        };
        assert_eq!(kind, kiln_core::outcome::FailureKind::Infra);
        assert!(message.contains("finished.outcome"), "{message}");
        assert!(read_finished(v1::Finished::default()).is_err());
    }
}
