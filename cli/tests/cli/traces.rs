//! One trace from `kiln run` over the server to the agent and back, as a collector sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::{Span, status::StatusCode},
};
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::up::Up;

const PATIENCE: Duration = Duration::from_secs(30);

/// Keeps the spans that come, with the name of the service that they come from.
struct Collector {
    spans: mpsc::Sender<(String, Span)>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let service = format!("{:?}", resource.resource);
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.spans.send((service.clone(), span)).await.unwrap();
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector on this machine: its address, and what it hears.
fn collector(runtime: &Runtime) -> (String, mpsc::Receiver<(String, Span)>) {
    let (spans, heard) = mpsc::channel(1_000);
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = TraceServiceServer::new(Collector { spans });
    let server = Server::builder().add_service(service);
    let _ends_with_the_runtime =
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, heard)
}

/// The spans that come until all of these names are there, by name.
fn spans(
    runtime: &Runtime,
    heard: &mut mpsc::Receiver<(String, Span)>,
    names: &[&str],
) -> BTreeMap<String, (String, Span)> {
    let end = Instant::now() + PATIENCE;
    let mut found = BTreeMap::new();
    while names.iter().any(|name| !found.contains_key(*name)) {
        let left = end.saturating_duration_since(Instant::now());
        let next = runtime.block_on(async { tokio::time::timeout(left, heard.recv()).await });
        let Ok(Some((service, span))) = next else { panic!("only {:?} came", found.keys()) };
        found.insert(span.name.clone(), (service, span));
    }
    found
}

const NAMES: [&str; 8] =
    ["kiln run", "submit", "queued", "lease", "finish", "job", "prepare", "script"];

#[test]
fn a_build_is_one_trace_from_the_command_to_the_script() {
    let runtime = Runtime::new().unwrap();
    let (endpoint, mut heard) = collector(&runtime);
    let mut up =
        Up::with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "100")]);
    let (code, seen) = up.run("sleep 0.2; echo $TRACEPARENT; exit 3");
    assert_eq!(code, 3);
    let found = spans(&runtime, &mut heard, &NAMES);
    let span = |name: &str| &found[name].1;
    let trace = &span("kiln run").trace_id;
    assert!(found.values().all(|(_, span)| span.trace_id == *trace), "{found:#?}");
    let parents = [
        ("submit", "kiln run"),
        ("queued", "submit"),
        ("lease", "submit"),
        ("finish", "lease"),
        ("job", "lease"),
        ("prepare", "job"),
        ("script", "job"),
    ];
    assert_eq!(span("kiln run").parent_span_id, [0_u8; 0]);
    for (child, parent) in parents {
        assert_eq!(span(child).parent_span_id, span(parent).span_id, "{child} below {parent}");
    }
    let ids: BTreeSet<_> = found.values().map(|(_, span)| &span.span_id).collect();
    assert_eq!(ids.len(), found.len(), "each has an id of its own");
    assert!(found["submit"].0.contains("kiln-up") && !found["kiln run"].0.contains("kiln-up"));

    let took = |name: &str| span(name).end_time_unix_nano - span(name).start_time_unix_nano;
    for name in ["script", "job", "lease", "kiln run"] {
        assert!(took(name) >= 200_000_000, "{name} took {} ns", took(name));
    }
    for name in ["job", "lease"] {
        let status = span(name).status.clone().unwrap();
        assert_eq!(status.code(), StatusCode::Error, "{name}");
    }
    // The job's own programs go on below the lease.
    let trace = u128::from_be_bytes(trace.as_slice().try_into().unwrap());
    let lease = u64::from_be_bytes(span("lease").span_id.as_slice().try_into().unwrap());
    assert_eq!(seen.trim(), format!("00-{trace:032x}-{lease:016x}-01"));
    up.stop();
}

#[test]
fn a_build_goes_on_with_the_trace_of_who_submits_it_and_of_nobody_else() {
    let runtime = Runtime::new().unwrap();
    let (endpoint, mut heard) = collector(&runtime);
    let mut up =
        Up::with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "100")]);
    let unwanted = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let wanted = "00-1af7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01";
    up.environment = vec![("TRACEPARENT", unwanted.to_owned())];
    assert_eq!(up.run("true").0, 0);
    up.environment = vec![("TRACEPARENT", wanted.to_owned())];
    assert_eq!(up.run("true").0, 0);
    // It exports nothing itself, so the trace goes on with the server.
    let found = spans(&runtime, &mut heard, &NAMES[1..]);
    assert!(!found.contains_key("kiln run"));
    let submit = &found["submit"].1;
    assert_eq!(submit.parent_span_id, 0xc7ad_6b71_6920_3331_u64.to_be_bytes());
    for (name, (_, span)) in &found {
        assert_eq!(span.trace_id[0], 0x1a, "{name} is of the trace that nobody wants");
    }
    up.stop();
}
