//! The wire: all that this agent says to the server and hears from it. Only this module names generated types; it gives
//! and takes the core's. One HTTP/2 connection carries the session, another one logs and artifacts, so that a slow log
//! never delays a heartbeat.

mod logs;
mod session;

use std::{path::Path, sync::Arc, time::Duration};

use kiln_core::id::{AgentId, LeaseId};
use kiln_sdk::{Client, Error, Options, Policy, Trust, v1};
use tokio::sync::Notify;
use tonic::{Code, Status};

pub use logs::{Acked, PushError, Pusher};
pub(crate) use session::{Event, Greeting, Hub, Opened};

use crate::{certificate::Certificate, identity::Identity};

const USER_AGENT: &str = concat!("kiln-agent/", env!("CARGO_PKG_VERSION"));

/// A job waits for its server as long as its own time limit lets it.
const PATIENT: Policy =
    Policy { attempts: u32::MAX, base: Duration::from_millis(100), cap: Duration::from_secs(10) };

/// How long the server may take to certify a key.
const ANSWER: Duration = Duration::from_secs(20);

/// Where the server is.
#[derive(Debug, Clone, Default)]
pub struct Address {
    pub url: String,
    /// For `https://`.
    pub trust: Trust,
}

impl Address {
    pub(crate) fn is_encrypted(&self) -> bool {
        self.url.starts_with("https://")
    }

    fn options(&self) -> Options {
        let mut options = Options::new(&self.url).resume(PATIENT);
        options.trust.clone_from(&self.trust);
        USER_AGENT.clone_into(&mut options.user_agent);
        options
    }
}

/// The server, as one enrolled agent reaches it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Server {
    control: Client,
    bulk: Client,
    /// Told when the server does not take this agent's certificate.
    doubt: Arc<Notify>,
}

impl Server {
    /// Connects with the first call.
    pub fn new(address: &Address, identity: &Identity) -> Result<Self, Error> {
        let options = address.options().token(identity.bearer());
        let (control, bulk) = (Client::lazy(options.clone())?, Client::lazy(options)?);
        Ok(Self { control, bulk, doubt: Arc::default() })
    }

    /// The server refused a call; says whether it was for want of a good certificate, and has another one asked for.
    pub(crate) fn doubt(&self, error: &Error) -> bool {
        let doubted = error.reason() == Some("AGENT_CERTIFICATE") || error.is_refused_certificate();
        if doubted {
            self.doubt.notify_one();
        }
        doubted
    }

    /// Until the server does not take this agent's certificate.
    pub(crate) async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// What later connections are secured with.
    pub(crate) fn secure(&self, trust: &Trust) -> Result<(), Error> {
        self.control.secure(trust)?;
        self.bulk.secure(trust)
    }

    /// Uploads a file as an artifact of a lease; gives its digest and size.
    pub(crate) async fn upload(&self, lease: LeaseId, path: &Path) -> Result<(String, u64), Error> {
        let uploaded = self.bulk.upload_for(path, &lease.to_string()).await;
        let uploaded = uploaded.inspect_err(|error| _ = self.doubt(error))?;
        Ok((uploaded.sha256, uploaded.size))
    }

    /// Fetches a blob into a file; the digest is verified.
    pub(crate) async fn download(&self, sha256: &str, into: &Path) -> Result<u64, Error> {
        let downloaded = self.bulk.download_blob(sha256, into).await;
        Ok(downloaded.inspect_err(|error| _ = self.doubt(error))?.size)
    }
}

/// Whether another attempt can't change the answer.
pub(crate) fn is_final(error: &Error) -> bool {
    matches!(error.code(), Code::NotFound | Code::InvalidArgument | Code::DataLoss)
}

/// Has a key certified, on a connection of its own that presents no certificate.
pub(crate) async fn certify(
    address: &Address,
    identity: &Identity,
    certificate_request: Vec<u8>,
) -> Result<Certificate, Error> {
    let client = Client::lazy(address.options().token(identity.bearer()))?;
    let request = v1::CertifyAgentRequest { certificate_request };
    let answer = tokio::time::timeout(ANSWER, client.agents().certify_agent(request)).await;
    let answer = answer.map_err(|_| Status::deadline_exceeded("the server did not answer"))?;
    Ok(certificate(answer?.into_inner().certificate.unwrap_or_default()))
}

fn certificate(given: v1::AgentCertificate) -> Certificate {
    let v1::AgentCertificate { certificate_pem: pem, renew_ms, ends_ms, authorities_pem } = given;
    Certificate { pem, renew_ms, ends_ms, authorities_pem }
}

/// Asks for an identity; the same token with the same digest gets the same answer for a while.
pub(crate) async fn enroll(
    address: &Address,
    token: &str,
    name: &str,
    credential_sha256: Vec<u8>,
    certificate_request: Vec<u8>,
) -> Result<(AgentId, Option<Certificate>), Error> {
    let client = Client::lazy(address.options())?;
    let request = v1::EnrollAgentRequest {
        token: token.to_owned(),
        name: name.to_owned(),
        credential_sha256,
        certificate_request,
    };
    let mut last = None;
    for attempt in 0..8_u32 {
        tokio::time::sleep(Duration::from_millis(200) * attempt.pow(2)).await;
        match client.agents().enroll_agent(request.clone()).await {
            Ok(answer) => {
                let v1::EnrollAgentResponse { agent, certificate: given } = answer.into_inner();
                let agent = agent.parse().map_err(|error| {
                    Status::internal(format!("the server gave a bad agent id: {error}"))
                })?;
                return Ok((agent, given.map(certificate)));
            }
            Err(status) => match Error::from(status) {
                error if error.code() == Code::Unavailable => last = Some(error),
                error => return Err(error),
            },
        }
    }
    Err(last.unwrap_or_else(|| Status::unavailable("the server does not answer").into()))
}
