//! Who may call what: a tower layer in front of all services.
//!
//! It knows bearer texts and a table of methods, nothing of messages. What a token of one project may touch inside a
//! method is asked of [`within`] by the service, once it has found the object.

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
    Request, Status,
    body::Body,
    codegen::http::{self, StatusCode, header::AUTHORIZATION},
};
use tower::{Layer, Service};

use super::status;
use crate::app::{App, Caller, Principal, Role};

pub use limits::{Limiter, neighbourhood};
pub use line::Line;
pub use own::{Owned, bound, within};
use streams::{Permit, STREAMS};
use table::{Who, admit, is_open, rule};

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
        Self { app, required, limiter }
    }

    async fn check(
        &self,
        method: &str,
        bearer: Option<String>,
        peer: Option<IpAddr>,
    ) -> Result<Admitted, Status> {
        let who = rule(method).ok_or_else(|| Status::unimplemented("there is no such method"))?;
        self.limiter.knock(peer, bearer.as_deref())?;
        let principal = match bearer {
            _ if who == Who::Anyone => return Ok(Admitted::default()),
            Some(bearer) => {
                let principal = self.app.authenticate(&bearer).await?;
                self.limiter.passed(&bearer);
                principal
            }
            None if self.required || who == Who::Agents => {
                return Err(status::unauthenticated("no credential was presented"));
            }
            None => anyone(),
        };
        self.limiter.call(&principal, method)?;
        if let Err(denied) = admit(who, &principal) {
            if method.starts_with("AdminService/") {
                tracing::warn!(method, caller = principal.name(), ?peer, "a call was denied");
            }
            return Err(denied);
        }
        let is_stream = STREAMS.contains(&method);
        let permit = is_stream.then(|| self.limiter.streams().open(&principal)).transpose()?;
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
        let line = request.extensions().get::<Line>();
        if let Some(line) = line {
            line.call();
        }
        let peer = line.map(|line| line.peer);
        let path = request.uri().path();
        let Some(method) = path.strip_prefix(PREFIX).map(str::to_owned) else {
            if is_open(path) {
                return inner.call(request).boxed();
            }
            let mut none = http::Response::new(Body::default());
            *none.status_mut() = StatusCode::NOT_FOUND;
            return ready(Ok(none)).boxed();
        };
        let layer = self.layer.clone();
        async move {
            let response = match layer.check(&method, bearer(request.headers()), peer).await {
                Ok(Admitted { principal, permit }) => {
                    let extensions = request.extensions_mut();
                    if let Some(peer) = peer {
                        extensions.insert(Peer(peer));
                    }
                    if let Some(principal) = principal {
                        extensions.insert(Caller { principal, peer });
                    }
                    let response = inner.call(request).await?;
                    match permit {
                        Some(permit) => response.map(|body| permit.hold(body)),
                        None => response,
                    }
                }
                Err(status) => status.into_http(),
            };
            // Said by the layer or, where the credential is in the message, by the service.
            if response.headers().get("grpc-status").is_some_and(|code| code == "16") {
                layer.limiter.failed(peer);
            }
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
