//! Who may call what: a tower layer in front of all services.
//!
//! It knows bearer texts and a table of methods, nothing of messages. What a token of one project may touch inside a
//! method is asked of [`within`] by the service, once it has found the object.

mod certificate;
mod limits;
mod line;
mod own;
mod streams;
mod table;

use std::{
    future::ready,
    net::IpAddr,
    task::{Context, Poll},
};

use futures::{FutureExt, future::BoxFuture};
use kiln_core::id::TokenId;
use tonic::{
    Code, Request, Status,
    body::Body,
    codegen::http::{
        self, HeaderValue, StatusCode,
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
    },
};
use tower::{Layer, Service};

use super::status;
use crate::app::{App, Caller, Principal, Role};

pub use limits::{Limiter, neighbourhood};
pub use line::{Line, Security};
pub use own::{Owned, bound, within};
use streams::{Permit, STREAMS};
use table::{METRICS, Who, admit, is_open, is_page, rule};

const PREFIX: &str = "/kiln.v1.";

/// Who calls, and from where; the layer has put it there.
pub fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| status::unauthenticated("no credential was presented"))
}

/// Address that a call comes from, where it is known; the layer has put it there.
#[derive(Debug, Clone, Copy)]
struct Peer(IpAddr);

/// Where a call comes from.
pub fn peer<T>(request: &Request<T>) -> Option<IpAddr> {
    request.extensions().get::<Peer>().map(|peer| peer.0)
}

/// Who calls.
pub fn principal<T>(request: &Request<T>) -> Result<Principal, Status> {
    Ok(caller(request)?.principal)
}

/// Authenticates callers, checks the table and the limits.
#[derive(Debug, Clone)]
pub struct AuthLayer {
    app: App,
    required: bool,
    open_metrics: bool,
    limiter: Limiter,
}

/// What was found out about a call that is let in.
#[derive(Debug, Default)]
struct Admitted {
    /// None where the message says who calls.
    principal: Option<Principal>,
    permit: Option<Permit>,
}

impl AuthLayer {
    /// Where it is not `required`, a caller without a credential is an administrator; agents need theirs anyway.
    pub fn new(app: App, required: bool, limiter: Limiter) -> Self {
        Self { app, required, open_metrics: false, limiter }
    }

    /// Anyone may read the metrics.
    #[must_use]
    pub fn with_open_metrics(self, open_metrics: bool) -> Self {
        Self { open_metrics, ..self }
    }

    fn is_open(&self, path: &str) -> bool {
        is_open(path) || (self.open_metrics && path == METRICS)
    }

    async fn check(
        &self,
        method: &str,
        bearer: Option<String>,
        line: Option<&Line>,
    ) -> Result<Admitted, Status> {
        let peer = line.map(|line| line.peer);
        let who = rule(method).ok_or_else(|| Status::unimplemented("there is no such method"))?;
        self.limiter.knock(peer, bearer.as_deref())?;
        let principal = match bearer {
            _ if who == Who::Anyone => return Ok(Admitted::default()),
            Some(bearer) => {
                let principal = self.app.authenticate(&bearer).await?;
                let security = line.and_then(|line| line.security.as_ref());
                certificate::check(method, &principal, security, self.app.clock().now())?;
                self.limiter.passed(&bearer);
                principal
            }
            None if self.required || who == Who::Agents => {
                return Err(status::unauthenticated("no credential was presented"));
            }
            None => anyone(),
        };
        tracing::Span::current().record("caller", principal.name());
        self.limiter.call(&principal, method)?;
        if let Err(denied) = admit(who, &principal) {
            if method.starts_with("AdminService/") {
                tracing::warn!(method, caller = principal.name(), ?peer, "a call was denied");
            }
            return Err(denied);
        }
        let is_stream = STREAMS.contains(&method);
        let permit = is_stream.then(|| self.limiter.stream(&principal)).transpose()?;
        Ok(Admitted { principal: Some(principal), permit })
    }
}

fn anyone() -> Principal {
    Principal::Token {
        id: TokenId::from_uuid(uuid::Uuid::nil()),
        name: "anyone".to_owned(),
        role: Role::Admin,
        project: None,
    }
}

/// The bearer text; an unreadable header is none.
fn bearer(headers: &http::HeaderMap) -> Option<String> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim().to_owned())
}

fn plain(status: StatusCode) -> http::Response<Body> {
    let mut response = http::Response::new(Body::default());
    *response.status_mut() = status;
    response
}

/// A refusal in the words of HTTP.
fn page(status: &Status) -> http::Response<Body> {
    let mut response = plain(match status.code() {
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    });
    if status.code() == Code::Unauthenticated {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    *response.body_mut() = Body::new(format!("{}\n", status.message()));
    response
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth { layer: self.clone(), inner }
    }
}

/// See [`AuthLayer`].
#[derive(Debug, Clone)]
pub struct Auth<S> {
    layer: AuthLayer,
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Auth<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        // The service that was polled ready is the one to call.
        let ready_one = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready_one);
        let line = request.extensions().get::<Line>().cloned();
        if let Some(line) = &line {
            line.call();
        }
        let peer = line.as_ref().map(|line| line.peer);
        let path = request.uri().path();
        let method = match path.strip_prefix(PREFIX) {
            Some(method) => method.to_owned(),
            None if self.layer.is_open(path) => return inner.call(request).boxed(),
            None if is_page(path) => path.to_owned(),
            None => return ready(Ok(plain(StatusCode::NOT_FOUND))).boxed(),
        };
        let layer = self.layer.clone();
        async move {
            let (response, code) =
                match layer.check(&method, bearer(request.headers()), line.as_ref()).await {
                    Ok(Admitted { principal, permit }) => {
                        let extensions = request.extensions_mut();
                        if let Some(peer) = peer {
                            extensions.insert(Peer(peer));
                        }
                        if let Some(principal) = principal {
                            extensions.insert(Caller { principal, peer });
                        }
                        let response = inner.call(request).await?;
                        let code = response.headers().get("grpc-status");
                        let code = code.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
                        let response = match permit {
                            Some(permit) => response.map(|body| permit.hold(body)),
                            None => response,
                        };
                        (response, code)
                    }
                    Err(status) if is_page(&method) => (page(&status), status.code()),
                    Err(status) => {
                        let code = status.code();
                        (status.into_http(), code)
                    }
                };
            // Said by the layer or, where the credential is in the message, by the service.
            if code == Code::Unauthenticated {
                layer.limiter.failed(peer);
            }
            layer.app.metrics().refused(code);
            Ok(response)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bearer_is_read_whatever_its_case() {
        let headers =
            |text: &str| http::HeaderMap::from_iter([(AUTHORIZATION, text.parse().unwrap())]);
        assert_eq!(bearer(&headers("Bearer abc")).as_deref(), Some("abc"));
        assert_eq!(bearer(&headers("bearer  abc ")).as_deref(), Some("abc"));
        assert_eq!(bearer(&headers("Basic abc")), None);
        assert_eq!(bearer(&headers("abc")), None);
    }
}
