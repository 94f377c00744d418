//! The outermost layer: each call has an id, the caller's own or a fresh one. It is in the metadata of the answer and in
//! every line that is logged on the way.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{self, HeaderMap, HeaderName, HeaderValue},
};
use tower::{Layer, Service};
use tracing::{Instrument, field::Empty};

use crate::clock::SharedClock;

/// Name of the header, in requests and answers.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// An id that is longer is replaced.
const MAX_ID: usize = 64;

/// Names each call, and logs its end at level debug.
#[derive(Debug, Clone)]
pub struct CallLayer {
    clock: SharedClock,
}

impl CallLayer {
    pub fn new(clock: SharedClock) -> Self {
        Self { clock }
    }

    fn id(&self, headers: &HeaderMap) -> HeaderValue {
        let fits = |value: &&HeaderValue| {
            let fine = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
            (1..=MAX_ID).contains(&value.len()) && value.as_bytes().iter().all(fine)
        };
        let given = headers.get(REQUEST_ID).filter(fits).cloned();
        given.unwrap_or_else(|| {
            let id = self.clock.id().simple().to_string();
            // Hexadecimal digits are visible ASCII.
            HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("none"))
        })
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = Call<S>;

    fn layer(&self, inner: S) -> Call<S> {
        Call { layer: self.clone(), inner }
    }
}

/// See [`CallLayer`].
#[derive(Debug, Clone)]
pub struct Call<S> {
    layer: CallLayer,
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Call<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let id = self.layer.id(request.headers());
        let method = request.uri().path().trim_start_matches('/');
        let shown = id.to_str().unwrap_or_default();
        // Also where only errors are logged, they have it.
        let span = tracing::error_span!("call", request_id = shown, method, caller = Empty);
        let clock = self.layer.clock.clone();
        let began = clock.elapsed();
        let answer = span.in_scope(|| self.inner.call(request));
        async move {
            let mut response = answer.await?;
            said(response.headers(), clock.elapsed().saturating_sub(began));
            response.headers_mut().insert(REQUEST_ID, id);
            Ok(response)
        }
        .instrument(span)
        .boxed()
    }
}

/// The line of a call. Of a stream it is its beginning: how it ends is in its trailers.
fn said(headers: &HeaderMap, took: Duration) {
    let code = Status::from_header_map(headers).map_or(Code::Ok, |status| status.code());
    tracing::debug!(?code, ms = took.as_millis(), "a call was answered");
}
