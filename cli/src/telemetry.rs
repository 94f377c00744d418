//! Traces: where this process tells of its spans, and the span of a command that submits a build.
//!
//! Nothing is exported unless `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) says where; the other variables of
//! OpenTelemetry (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_…`) hold too.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use kiln_core::trace::{self, Span, Trace};
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanKind, Status, TraceFlags, TraceState},
};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    Resource,
    trace::{
        BatchSpanProcessor, IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks,
        SpanProcessor,
    },
};

use crate::{args::Command, cmd::Result, failure::Failure, time};

/// What is not delivered by then is lost.
const FLUSH: Duration = Duration::from_secs(5);

/// What is told, from the start of a command to its end.
#[derive(Debug)]
pub(crate) struct Telemetry {
    processor: Option<Arc<BatchSpanProcessor>>,
    /// The span of the command.
    span: Option<Span>,
    /// Where builds belong that the command submits.
    place: Option<Trace>,
}

impl Telemetry {
    /// Must be called within the runtime that the exporter is to use.
    pub(crate) fn start(command: &Command) -> Result<Self> {
        let caller: Option<Trace> = set("TRACEPARENT").and_then(|text| text.parse().ok());
        let endpoint = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
        if endpoint.into_iter().find_map(set).is_none() {
            return Ok(Self { processor: None, span: None, place: caller });
        }
        let processor = Arc::new(processor(command)?);
        let sink = Arc::clone(&processor);
        trace::install(move |span| sink.on_end(data(span)));
        let span = submits(command).map(|name| root(name, caller));
        let place = span.as_ref().map(|span| span.at);
        Ok(Self { processor: Some(processor), span, place })
    }

    pub(crate) fn traceparent(&self) -> Option<String> {
        self.place.map(|place| place.to_string())
    }

    /// The command has ended; waits until what was told is delivered.
    pub(crate) async fn end(self, error: Option<String>) {
        if let Some(span) = self.span {
            trace::tell(Span { to: time::now(), error, ..span });
        }
        if let Some(processor) = self.processor {
            // It waits for a thread of its own, which waits for the exporter on this runtime.
            let ended = move || processor.shutdown_with_timeout(FLUSH);
            let lost =
                tokio::task::spawn_blocking(ended).await.ok().and_then(std::result::Result::err);
            if let Some(error) = lost {
                tracing::warn!(%error, "spans were not delivered");
            }
        }
    }
}

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The name of the span of a command that submits a build.
const fn submits(command: &Command) -> Option<&'static str> {
    match command {
        Command::Run(_) => Some("kiln run"),
        Command::Submit(_) => Some("kiln submit"),
        _ => None,
    }
}

const fn service(command: &Command) -> &'static str {
    match command {
        Command::Server(_) => "kiln-server",
        Command::Agent(_) => "kiln-agent",
        Command::Up(_) => "kiln-up",
        _ => "kiln",
    }
}

fn processor(command: &Command) -> Result<BatchSpanProcessor> {
    let exporter = SpanExporter::builder().with_tonic().build().map_err(|error| {
        Failure::usage(format!("traces can't be exported: {error}"))
            .hint("OTEL_EXPORTER_OTLP_ENDPOINT is the gRPC address of a collector, as http://127.0.0.1:4317")
    })?;
    let mut processor = BatchSpanProcessor::builder(exporter).build();
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let mut resource = Resource::builder().with_attribute(version);
    if set("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(service(command));
    }
    processor.set_resource(&resource.build());
    Ok(processor)
}

fn root(name: &str, caller: Option<Trace>) -> Span {
    let ids = RandomIdGenerator::default();
    let span = u64::from_be_bytes(ids.new_span_id().to_bytes());
    let fresh =
        || Trace { trace: u128::from_be_bytes(ids.new_trace_id().to_bytes()), span, sampled: true };
    Span {
        name: name.to_owned(),
        at: caller.map_or_else(fresh, |caller| caller.at(span)),
        parent: caller.map(|caller| caller.span),
        scope: "kiln",
        from: time::now(),
        to: 0,
        attributes: vec![],
        error: None,
    }
}

/// A span as the exporter takes it.
fn data(span: Span) -> SpanData {
    let Span { name, at, parent, scope, from, to, attributes, error } = span;
    let flags = if at.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let context =
        SpanContext::new(at.trace.into(), at.span.into(), flags, false, TraceState::default());
    SpanData {
        span_context: context,
        parent_span_id: parent.unwrap_or_default().into(),
        parent_span_is_remote: parent.is_some(),
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: moment(from),
        end_time: moment(to.max(from)),
        attributes: attributes.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: error.map_or(Status::Unset, Status::error),
        instrumentation_scope: InstrumentationScope::builder(scope).build(),
    }
}

fn moment(ms: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}
