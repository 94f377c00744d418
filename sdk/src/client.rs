//! The connection: address, bearer token, keep-alive, windows, and the generated clients over it.

use std::{fmt, time::Duration};

use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::{
    Error,
    connect::Connector,
    retry::{Backoff, Policy, is_transient},
    tls::{Fault, Fingerprint, Identity, Tls, Trust},
    v1::{
        admin_service_client::AdminServiceClient, agent_service_client::AgentServiceClient,
        artifact_service_client::ArtifactServiceClient, build_service_client::BuildServiceClient,
        log_service_client::LogServiceClient, project_service_client::ProjectServiceClient,
        secret_service_client::SecretServiceClient,
    },
};

/// A dead peer is noticed within these two.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2's default of 64 KiB holds one stream at a few MB/s.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// A build of 10,000 jobs with their needs fits.
const MAX_MESSAGE: usize = 64 << 20;

/// A bearer token. It shows in no log and no debug text.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where to connect, as whom, and how patiently.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// `http://host:port` or `https://host:port`.
    pub server: String,
    /// Absent: no credential is presented.
    pub token: Option<Token>,
    /// For `https://`: whom to trust, and who this side is.
    pub trust: Trust,
    /// How long a connection may take to come up.
    pub connect_timeout: Duration,
    /// How long one attempt of a single call may take.
    pub call_timeout: Duration,
    /// Single calls.
    pub retry: Policy,
    /// Streams that resume.
    pub resume: Policy,
    /// Program and version, for the server's log.
    pub user_agent: String,
    /// W3C traceparent: builds that are submitted belong below this span.
    pub traceparent: Option<String>,
}

impl Options {
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            token: None,
            trust: Trust::default(),
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            retry: Policy::CALL,
            resume: Policy::STREAM,
            user_agent: concat!("kiln-sdk/", env!("CARGO_PKG_VERSION")).into(),
            traceparent: None,
        }
    }

    #[must_use]
    pub fn token(mut self, secret: impl Into<String>) -> Self {
        self.token = Some(Token::new(secret));
        self
    }

    /// PEM of the authority that signed the server's certificate.
    #[must_use]
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.trust.ca_pem = Some(pem.into());
        self
    }

    /// Digest of the authority that signed the server's certificate, in place of its file.
    #[must_use]
    pub const fn ca_fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.trust.ca_fingerprint = Some(fingerprint);
        self
    }

    /// The certificate of this side.
    #[must_use]
    pub fn identity(mut self, identity: Identity) -> Self {
        self.trust.identity = Some(identity);
        self
    }

    #[must_use]
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = Some(traceparent.into());
        self
    }

    #[must_use]
    pub const fn retry(mut self, policy: Policy) -> Self {
        self.retry = policy;
        self
    }

    #[must_use]
    pub const fn resume(mut self, policy: Policy) -> Self {
        self.resume = policy;
        self
    }

    fn endpoint(&self) -> Result<(Endpoint, Option<Tls>), Error> {
        let bad = |detail: String| {
            Error::local(
                Code::InvalidArgument,
                format!("bad server address {:?}{detail}", self.server),
            )
            .with_hint("write it as http://host:port or https://host:port")
        };
        let rest = self.server.strip_prefix("https://");
        let plain = match rest {
            Some(rest) => format!("http://{rest}"),
            None if self.server.starts_with("http://") => self.server.clone(),
            None => return Err(bad(String::new())),
        };
        // The connector is the one that knows of TLS; the origin is what calls are made to.
        let origin = self.server.parse().map_err(|error| bad(format!(": {error}")))?;
        let endpoint = Endpoint::from_shared(plain)
            .and_then(|endpoint| endpoint.user_agent(self.user_agent.clone()))
            .map_err(|error| bad(format!(": {error}")))?
            .origin(origin)
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        Ok((endpoint, rest.map(|_| Tls::new(&self.trust)).transpose()?))
    }

    fn bearer(&self) -> Result<Bearer, Error> {
        let trace = self.traceparent.as_ref().map(|text| text.parse()).transpose();
        let trace = trace.map_err(|_| {
            Error::local(Code::InvalidArgument, "the traceparent holds what no traceparent has")
        })?;
        let Some(Token(secret)) = &self.token else { return Ok(Bearer { token: None, trace }) };
        let mut value: MetadataValue<Ascii> = format!("Bearer {secret}").parse().map_err(|_| {
            Error::local(Code::InvalidArgument, "the token holds characters that no token has")
                .with_hint("check the token file: one line, nothing but the token")
        })?;
        value.set_sensitive(true);
        Ok(Bearer { token: Some(value), trace })
    }
}

/// Adds token and traceparent to every call.
#[derive(Debug, Clone)]
pub struct Bearer {
    token: Option<MetadataValue<Ascii>>,
    trace: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.token {
            request.metadata_mut().insert("authorization", value.clone());
        }
        if let Some(value) = &self.trace {
            request.metadata_mut().insert("traceparent", value.clone());
        }
        Ok(request)
    }
}

/// A connection that authenticates.
pub type Transport = InterceptedService<Channel, Bearer>;

/// A connection to one server. Cheap to clone; clones share the connection, which comes back by itself after a cut.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Transport,
    tls: Option<Tls>,
    options: std::sync::Arc<Options>,
}

impl Client {
    /// Connects now, and fails when the server is not there.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let ((endpoint, tls), bearer) = (options.endpoint()?, options.bearer()?);
        let connector = Connector { tls: tls.clone() };
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| {
            let text =
                |cause: &dyn fmt::Display| format!("cannot reach {}: {cause}", options.server);
            match Fault::find(&error) {
                Some(fault) => {
                    Error::local(Code::FailedPrecondition, text(&fault)).with_hint(fault.hint)
                }
                None => Error::local(Code::Unavailable, text(&root(&error))),
            }
        })?;
        Ok(Self::over(channel, tls, bearer, options))
    }

    /// Connects with the first call. Must be called within a tokio runtime.
    pub fn lazy(options: Options) -> Result<Self, Error> {
        let ((endpoint, tls), bearer) = (options.endpoint()?, options.bearer()?);
        let channel = endpoint.connect_with_connector_lazy(Connector { tls: tls.clone() });
        Ok(Self::over(channel, tls, bearer, options))
    }

    fn over(channel: Channel, tls: Option<Tls>, bearer: Bearer, options: Options) -> Self {
        let transport = InterceptedService::new(channel, bearer);
        Self { transport, tls, options: options.into() }
    }

    /// What the next connection is secured with, in place of what `options` say. An open connection goes on.
    pub fn secure(&self, trust: &Trust) -> Result<(), Error> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.set(trust))
    }

    /// What it was connected with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The generated client of the builds, for a call that must not be retried.
    pub fn builds(&self) -> BuildServiceClient<Transport> {
        BuildServiceClient::new(self.transport.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// The generated client of the projects.
    pub fn projects(&self) -> ProjectServiceClient<Transport> {
        ProjectServiceClient::new(self.transport.clone())
    }

    /// The generated client of the secrets.
    pub fn secrets(&self) -> SecretServiceClient<Transport> {
        SecretServiceClient::new(self.transport.clone())
    }

    /// The generated client of the logs.
    pub fn log_service(&self) -> LogServiceClient<Transport> {
        LogServiceClient::new(self.transport.clone())
    }

    /// The generated client of the artifacts.
    pub fn artifact_service(&self) -> ArtifactServiceClient<Transport> {
        ArtifactServiceClient::new(self.transport.clone())
    }

    /// The generated client that agents speak.
    pub fn agents(&self) -> AgentServiceClient<Transport> {
        AgentServiceClient::new(self.transport.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// The generated client of the administration.
    pub fn admin(&self) -> AdminServiceClient<Transport> {
        AdminServiceClient::new(self.transport.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// One attempt, within the call's time.
    pub(crate) async fn once<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        match tokio::time::timeout(self.options.call_timeout, call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("the server did not answer in time")),
        }
    }

    /// As many attempts as the policy gives, of a call that can't do a thing twice.
    pub(crate) async fn retrying<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut backoff = Backoff::new(self.options.retry);
        loop {
            let status = match self.once(call()).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            if !is_transient(&status) || !backoff.wait(Some(&status)).await {
                return Err(status.into());
            }
            tracing::debug!(code = ?status.code(), "the call is made again");
        }
    }
}

/// The cause at the end of the chain; what stands before it says only "transport error".
fn root(error: &dyn std::error::Error) -> &dyn std::error::Error {
    error.source().map_or(error, root)
}
