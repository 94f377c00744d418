//! The wire: all that this agent says to the server and hears from it. Only this module names generated types; it gives
//! and takes the core's. One HTTP/2 connection carries the session, another one logs and artifacts, so that a slow log
//! never delays a heartbeat.

mod logs;
mod session;

use std::{path::Path, time::Duration};

use kiln_core::id::{AgentId, LeaseId};
use kiln_sdk::{Client, Error, Options, Policy, Trust, v1};
use tonic::Code;

pub use logs::{Acked, PushError, Pusher};
pub(crate) use session::{Event, Greeting, Hub, Opened};

use crate::identity::Identity;

const USER_AGENT: &str = concat!("kiln-agent/", env!("CARGO_PKG_VERSION"));

/// A job waits for its server as long as its own time limit lets it.
const PATIENT: Policy =
    Policy { attempts: u32::MAX, base: Duration::from_millis(100), cap: Duration::from_secs(10) };

/// Where the server is.
#[derive(Debug, Clone, Default)]
pub struct Address {
    pub url: String,
    /// For `https://`.
    pub trust: Trust,
}

impl Address {
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
}

impl Server {
    /// Connects with the first call.
    pub fn new(address: &Address, identity: &Identity) -> Result<Self, Error> {
        let options = address.options().token(identity.bearer());
        Ok(Self { control: Client::lazy(options.clone())?, bulk: Client::lazy(options)? })
    }

    /// Uploads a file as an artifact of a lease; gives its digest and size.
    pub(crate) async fn upload(&self, lease: LeaseId, path: &Path) -> Result<(String, u64), Error> {
        let uploaded = self.bulk.upload_for(path, &lease.to_string()).await?;
        Ok((uploaded.sha256, uploaded.size))
    }

    /// Fetches a blob into a file; the digest is verified.
    pub(crate) async fn download(&self, sha256: &str, into: &Path) -> Result<u64, Error> {
        Ok(self.bulk.download_blob(sha256, into).await?.size)
    }
}

/// Whether another attempt can't change the answer.
pub(crate) fn is_final(error: &Error) -> bool {
    matches!(error.code(), Code::NotFound | Code::InvalidArgument | Code::DataLoss)
}

/// Asks for an identity; the same token with the same digest gets the same answer for a while.
pub(crate) async fn enroll(
    address: &Address,
    token: &str,
    name: &str,
    credential_sha256: Vec<u8>,
) -> Result<AgentId, Error> {
    let client = Client::lazy(address.options())?;
    let request = v1::EnrollAgentRequest {
        token: token.to_owned(),
        name: name.to_owned(),
        credential_sha256,
    };
    let mut last = None;
    for attempt in 0..8_u32 {
        tokio::time::sleep(Duration::from_millis(200) * attempt.pow(2)).await;
        match client.agents().enroll_agent(request.clone()).await {
            Ok(answer) => {
                let agent = answer.into_inner().agent;
                return agent.parse().map_err(|error| {
                    tonic::Status::internal(format!("the server gave a bad agent id: {error}"))
                        .into()
                });
            }
            Err(status) => match Error::from(status) {
                error if error.code() == Code::Unavailable => last = Some(error),
                error => return Err(error),
            },
        }
    }
    Err(last.unwrap_or_else(|| tonic::Status::unavailable("the server does not answer").into()))
}
