//! How much one caller may ask for: calls and submissions of a token, failed logins of an address.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kiln_core::id::TokenId;
use tonic::Status;

use super::streams::{Permit, Streams};
use crate::{
    app::{App, Principal},
    clock::SharedClock,
    config::Limits,
    grpc::{bucket::Buckets, status},
    live::Live,
};

/// A credential that was good so lately is let in although its address fails.
const LATELY: Duration = Duration::from_mins(10);
/// Credentials that are remembered so.
const CREDENTIALS: usize = 10_000;

/// What callers took. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Limiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: SharedClock,
    rules: Live<Rules>,
    /// Keyed hashes of credentials, and when they were good last.
    good: Mutex<HashMap<u64, Duration>>,
    hash: RandomState,
    streams: Arc<Streams>,
}

/// The limits that hold now, and what was taken of them.
#[derive(Debug)]
struct Rules {
    limits: Limits,
    calls: Option<Buckets<TokenId>>,
    submissions: Option<Buckets<TokenId>>,
    failures: Option<Buckets<IpAddr>>,
}

impl Rules {
    fn new(limits: Limits) -> Self {
        let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
        Self {
            calls: Buckets::new(limits.calls_per_second, second, limits.calls_burst),
            submissions: Buckets::new(
                limits.submissions_per_minute,
                minute,
                limits.submissions_per_minute,
            ),
            failures: Buckets::new(limits.failures_per_minute, minute, limits.failures_per_minute),
            limits,
        }
    }
}

/// Who is counted as one: an IPv6 host has a whole /64 network to itself.
pub fn neighbourhood(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Limiter {
    pub fn new(limits: Limits, clock: SharedClock) -> Self {
        Self(Arc::new(Inner {
            rules: Rules::new(limits).into(),
            good: Mutex::default(),
            hash: RandomState::new(),
            streams: Arc::default(),
            clock,
        }))
    }

    /// Other limits from now on. What was taken is forgotten, but for open streams.
    pub fn set(&self, limits: Limits) {
        self.0.rules.set(Rules::new(limits));
    }

    /// The right to one more stream.
    pub(super) fn stream(&self, principal: &Principal) -> Result<Permit, Status> {
        self.0.streams.open(principal, self.0.rules.get().limits.streams)
    }

    /// Cuts open streams whose credential is void by now.
    pub async fn review(&self, app: &App) -> crate::app::Result<()> {
        self.0.streams.review(app).await
    }

    /// Before a credential is looked at: whether its address failed too often. One that was good lately is not barred:
    /// who shares an address with an attacker goes on working.
    pub(super) fn knock(&self, peer: Option<IpAddr>, bearer: Option<&str>) -> Result<(), Status> {
        let rules = self.0.rules.get();
        let (Some(failures), Some(peer)) = (&rules.failures, peer) else { return Ok(()) };
        let now = self.0.clock.elapsed();
        match failures.wait(&neighbourhood(peer), now) {
            Some(wait) if !bearer.is_some_and(|bearer| self.was_good(bearer, now)) => {
                let text = format!(
                    "more than {} logins a minute from this address failed",
                    rules.limits.failures_per_minute
                );
                Err(status::too_much(text, "limits.failures_per_minute", wait))
            }
            _ => Ok(()),
        }
    }

    /// No or a wrong credential came from this address.
    pub(super) fn failed(&self, peer: Option<IpAddr>) {
        if let (Some(failures), Some(peer)) = (&self.0.rules.get().failures, peer) {
            // Beyond the limit, nothing is looked at any more.
            let _ = failures.take(neighbourhood(peer), self.0.clock.elapsed());
        }
    }

    /// A credential was good.
    pub(super) fn passed(&self, bearer: &str) {
        if self.0.rules.get().failures.is_none() {
            return;
        }
        let now = self.0.clock.elapsed();
        let mut good = self.0.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.len() >= CREDENTIALS {
            good.retain(|_, at| now.saturating_sub(*at) < LATELY);
            if good.len() >= CREDENTIALS {
                good.clear();
            }
        }
        good.insert(self.0.hash.hash_one(bearer), now);
    }

    fn was_good(&self, bearer: &str, now: Duration) -> bool {
        let good = self.0.good.lock().unwrap_or_else(PoisonError::into_inner);
        let at = good.get(&self.0.hash.hash_one(bearer));
        at.is_some_and(|at| now.saturating_sub(*at) < LATELY)
    }

    /// Takes a call of this caller. Agents are not limited here: the server asked them for what they call.
    pub(super) fn call(&self, principal: &Principal, method: &str) -> Result<(), Status> {
        let Principal::Token { id, .. } = principal else { return Ok(()) };
        let now = self.0.clock.elapsed();
        let Rules { limits, calls, submissions, .. } = &*self.0.rules.get();
        if let Some(calls) = calls {
            calls.take(*id, now).map_err(|wait| {
                let text =
                    format!("more than {} calls a second with one token", limits.calls_per_second);
                status::too_much(text, "limits.calls_per_second", wait)
            })?;
        }
        match submissions {
            Some(submissions) if method == "BuildService/SubmitBuild" => {
                submissions.take(*id, now).map_err(|wait| {
                    let text = format!(
                        "more than {} submissions a minute with one token",
                        limits.submissions_per_minute
                    );
                    status::too_much(text, "limits.submissions_per_minute", wait)
                })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{app::Role, uploads::fixture::TestClock};

    fn token(n: u128) -> Principal {
        Principal::Token {
            id: TokenId::from_uuid(uuid::Uuid::from_u128(n)),
            name: "t".into(),
            role: Role::Admin,
            project: None,
        }
    }

    fn limiter(limits: Limits) -> (Limiter, Arc<TestClock>) {
        let clock = Arc::new(TestClock::default());
        let shared: SharedClock = clock.clone();
        (Limiter::new(limits, shared), clock)
    }

    #[test]
    fn a_token_has_calls_and_submissions_of_its_own() {
        use std::sync::atomic::Ordering;
        let limits = Limits {
            calls_per_second: 1,
            calls_burst: 3,
            submissions_per_minute: 1,
            ..Limits::default()
        };
        let (limiter, clock) = limiter(limits);
        let submit = "BuildService/SubmitBuild";
        assert!(limiter.call(&token(1), submit).is_ok());
        let refused = limiter.call(&token(1), submit).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(limiter.call(&token(1), "BuildService/GetBuild").is_ok());
        assert!(limiter.call(&token(1), "BuildService/GetBuild").is_err());
        assert!(limiter.call(&token(2), submit).is_ok());
        clock.now.store(60_000, Ordering::SeqCst);
        assert!(limiter.call(&token(1), submit).is_ok());
    }

    #[test]
    fn new_limits_hold_at_once() {
        let (limiter, _) =
            limiter(Limits { calls_burst: 1, calls_per_second: 1, ..Limits::default() });
        let get = |limiter: &Limiter| limiter.call(&token(1), "BuildService/GetBuild").is_ok();
        assert_eq!([get(&limiter), get(&limiter)], [true, false]);
        limiter.set(Limits {
            calls_burst: 2,
            calls_per_second: 1,
            streams: 1,
            ..Limits::default()
        });
        assert_eq!([get(&limiter), get(&limiter), get(&limiter)], [true, true, false]);
        let stream = limiter.stream(&token(1)).unwrap();
        assert!(limiter.stream(&token(1)).is_err());
        limiter.set(Limits { streams: 2, ..Limits::default() });
        let _second = limiter.stream(&token(1)).unwrap();
        assert!(limiter.stream(&token(1)).is_err(), "those that are open count");
        drop(stream);
        assert!(limiter.stream(&token(1)).is_ok());
    }

    #[test]
    fn an_address_that_fails_is_barred_but_not_who_was_good_there() {
        let (limiter, _) = limiter(Limits { failures_per_minute: 2, ..Limits::default() });
        let peer = Some("2001:db8::1".parse().unwrap());
        let neighbour = Some("2001:db8::2".parse().unwrap());
        limiter.passed("good");
        for _ in 0..2 {
            assert!(limiter.knock(peer, Some("bad")).is_ok());
            limiter.failed(peer);
        }
        assert!(limiter.knock(peer, Some("bad")).is_err());
        assert!(limiter.knock(neighbour, None).is_err(), "its host has the whole network");
        assert!(limiter.knock(peer, Some("good")).is_ok());
        assert!(limiter.knock(Some("192.0.2.1".parse().unwrap()), None).is_ok());
    }
}
