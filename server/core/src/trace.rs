//! One trace from Submit to Finish: where a build belongs in it, and the spans that are told to a collector.
//!
//! Nothing of a span is kept while it lasts. Its id follows from what it is of, and its times are those of the rows and
//! of the marks in a log, so that whoever sees the end can tell the whole of it: another server, or an agent that was
//! restarted in between.

use std::{fmt, str::FromStr, sync::OnceLock};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Millis;

/// The annotation of a build that says where it belongs.
pub const ANNOTATION: &str = "traceparent";

/// A place in a trace, as the W3C header `traceparent` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Trace {
    pub trace: u128,
    pub span: u64,
    /// Spans are wanted.
    pub sampled: bool,
}

/// It is not a `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a traceparent of version 00: 00-TRACE-SPAN-FLAGS")]
pub struct Malformed;

impl Trace {
    /// The place of a span below this one.
    #[must_use]
    pub const fn at(self, span: u64) -> Self {
        Self { span, ..self }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl FromStr for Trace {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let parts: Vec<&str> = text.split('-').collect();
        let [version, trace, span, flags] = parts[..] else { return Err(Malformed) };
        let lower =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let shape = [(version, 2), (trace, 32), (span, 16), (flags, 2)];
        if version != "00"
            || shape.iter().any(|(part, length)| part.len() != *length || !lower(part))
        {
            return Err(Malformed);
        }
        let read = Self {
            trace: u128::from_str_radix(trace, 16).map_err(|_| Malformed)?,
            span: u64::from_str_radix(span, 16).map_err(|_| Malformed)?,
            sampled: u8::from_str_radix(flags, 16).map_err(|_| Malformed)? & 1 == 1,
        };
        if read.trace == 0 || read.span == 0 { Err(Malformed) } else { Ok(read) }
    }
}

impl TryFrom<String> for Trace {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}

impl From<Trace> for String {
    fn from(trace: Trace) -> Self {
        trace.to_string()
    }
}

/// The id of the span of this kind that is of the object: the random half of its id, told apart by the kind.
pub fn span_id(of: Uuid, kind: u16) -> u64 {
    // The half has the variant's bits set, so it is never zero, and it differs from another kind's.
    of.as_u64_pair().1 ^ u64::from(kind)
}

/// Something that took its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub name: String,
    /// Its own place.
    pub at: Trace,
    /// The span above it; none: it is the root.
    pub parent: Option<u64>,
    /// Who tells of it: `kiln-server`, `kiln-agent`, `kiln`.
    pub scope: &'static str,
    pub from: Millis,
    pub to: Millis,
    pub attributes: Vec<(&'static str, String)>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Takes spans that have ended. It must not block.
type Sink = Box<dyn Fn(Span) + Send + Sync>;

static SINK: OnceLock<Sink> = OnceLock::new();

/// Spans of this process go there from now on; without, none is made. False where there is a sink already.
pub fn install(sink: impl Fn(Span) + Send + Sync + 'static) -> bool {
    SINK.set(Box::new(sink)).is_ok()
}

/// Spans are told to someone.
pub fn is_on() -> bool {
    SINK.get().is_some()
}

/// Tells of a span that has ended, where they are wanted.
pub fn tell(span: Span) {
    if let Some(sink) = SINK.get().filter(|_| span.at.sampled) {
        sink(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_as_it_is_written() {
        let trace: Trace = TEXT.parse().unwrap();
        assert!(trace.sampled);
        assert_eq!(trace.to_string(), TEXT);
        let off: Trace = TEXT.replace("-01", "-00").parse().unwrap();
        assert!(!off.sampled);
        let json = serde_json::to_string(&trace).unwrap();
        assert_eq!(serde_json::from_str::<Trace>(&json).unwrap(), trace);
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        let zero_trace = TEXT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
        let zero_span = TEXT.replace("b7ad6b7169203331", &"0".repeat(16));
        let upper = TEXT.to_uppercase();
        let long = format!("{TEXT}-x");
        let signed = TEXT.replace("-b7", "-+7");
        for text in ["", "00", "01", &zero_trace, &zero_span, &upper, &long, &signed] {
            assert_eq!(text.parse::<Trace>(), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn kinds_of_spans_of_one_object_have_ids_of_their_own() {
        let id = Uuid::from_u128(0x019a_a5c1_b1f2_7c0d_9a52_a7f0_1f4c_e8aa);
        let ids: std::collections::BTreeSet<u64> = (0..100).map(|kind| span_id(id, kind)).collect();
        assert_eq!(ids.len(), 100);
        assert!(!ids.contains(&0));
    }
}
