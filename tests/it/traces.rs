//! Traces: one request is one trace over API and worker. The spans are received by OTLP, as a collector receives them.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::issuance::reserve::{QueueEntries, Reserved, reserve};
use coupon_system::redis::keys::{certificate, trace_parents};
use coupon_system::runtime::traces::TraceParent;
use opentelemetry::trace::{SpanContext, TraceFlags, TraceState};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::json;
use tokio::process::{Child, Command};

use crate::helpers::{
    API, Answer, Client, NO_BACKLOG_MAX, System, WORKER, eventually, logging, program, recovered, request,
    serving,
};

/// A span, and the service that sent it.
#[derive(Debug, Clone)]
struct ReceivedSpan {
    service: String,
    span: Span,
}

/// Receives spans by OTLP, as a collector does.
#[derive(Clone)]
struct SpanReceiver {
    url: String,
    spans: Arc<Mutex<Vec<ReceivedSpan>>>,
}

impl SpanReceiver {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let receiver = SpanReceiver { url, spans: Arc::default() };
        let router = Router::new().route("/v1/traces", post(Self::receive)).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        receiver
    }

    async fn receive(State(receiver): State<SpanReceiver>, body: Bytes) -> StatusCode {
        let sent = ExportTraceServiceRequest::decode(body).expect("spans");
        let mut spans = receiver.spans.lock().expect("no panic");
        for of_service in sent.resource_spans {
            let resource = of_service.resource.expect("a resource");
            let service = text(&resource.attributes, "service.name").expect("a name").to_owned();
            for span in of_service.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans) {
                spans.push(ReceivedSpan { service: service.clone(), span });
            }
        }
        StatusCode::OK
    }

    /// A program that sends its spans here, soon.
    fn fed_by(&self, path: &str, system: &System) -> Command {
        let mut command = program(path, system);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &self.url).env("OTEL_BSP_SCHEDULE_DELAY", "50");
        command
    }

    async fn worker(&self, system: &System) -> Child {
        let mut worker = self.fed_by(WORKER, system);
        worker.args(["--metrics-listen", "127.0.0.1:0"]);
        serving(worker).await.0
    }

    fn spans(&self) -> Vec<ReceivedSpan> {
        self.spans.lock().expect("no panic").clone()
    }

    fn of_trace(&self, trace: &[u8]) -> Vec<ReceivedSpan> {
        self.spans().into_iter().filter(|received| received.span.trace_id == trace).collect()
    }

    /// Waits for the span of a request in its trace.
    async fn request_span(&self, trace: &[u8]) -> Span {
        eventually("the request's span comes", async || {
            let found = self.of_trace(trace).into_iter().find(|one| one.span.kind == SpanKind::Server as i32);
            let found = found.filter(|received| received.service == "coupon-api");
            found.map(|received| received.span)
        })
        .await
    }

    /// Waits until the trace has this many spans of a worker, and returns them by the time they ended.
    async fn attempts(&self, trace: &[u8], count: usize) -> Vec<Span> {
        let mut attempts = eventually("the worker's spans come", async || {
            let spans = self.of_trace(trace).into_iter().filter(|one| one.service == "coupon-worker");
            let spans: Vec<_> = spans.map(|received| received.span).collect();
            (spans.len() >= count).then_some(spans)
        })
        .await;
        attempts.sort_by_key(|span| span.end_time_unix_nano);
        attempts
    }

    /// Asserts that the attempt continues the request's span, and that it and the span of its batch name each other.
    async fn assert_linked(&self, request: &Span, attempt: &Span) {
        assert_eq!(attempt.parent_span_id, request.span_id, "{attempt:?}");
        let [link] = attempt.links.as_slice() else { panic!("{attempt:?}") };
        assert_ne!(link.trace_id, request.trace_id, "a batch is no part of a request");
        let batch = eventually("the batch's span comes", async || {
            let of_trace = self.of_trace(&link.trace_id).into_iter();
            of_trace.map(|received| received.span).find(|span| span.span_id == link.span_id)
        })
        .await;
        assert_eq!(batch.name, "decide a batch");
        let names_request = batch
            .links
            .iter()
            .any(|link| (&link.trace_id, &link.span_id) == (&request.trace_id, &request.span_id));
        assert!(names_request, "{batch:?}");
    }
}

/// The attribute of this name, if it is a text.
fn text<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()? {
        AnyValue { value: Some(Value::StringValue(text)), .. } => Some(text),
        _ => None,
    }
}

/// Requests the coupon, with a `traceparent` if there is one.
async fn issue(client: &Client, user: &str, traceparent: Option<&str>) -> Answer {
    let mut request = client.request("POST", "/user-coupons").json(&json!({"userId": user, "couponId": "c"}));
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    client.send(request).await
}

/// How many issuances a span is kept for.
async fn kept(system: &System) -> u64 {
    system.command(&["HLEN", &trace_parents(PartitionId::ONE)]).await
}

const TRACE: [u8; 16] = *b"0123456789abcdef";
const TRACEPARENT: &str = "00-30313233343536373839616263646566-6f6e65207370616e-01";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_one_trace_over_api_and_worker_also_after_a_rebuild() {
    let (receiver, system) = (SpanReceiver::start().await, System::start().await);
    system.users("u", 3).await;
    system.coupon("c", 9, 1).await;
    let mut api = receiver.fed_by(API, &system);
    api.args(["--listen", "127.0.0.1:0", "--audit-every", "0", "--log", "debug"]);
    let (_api, address, log) = logging(api).await;
    let client = Client::new(address);

    let continued = issue(&client, "u0", Some(TRACEPARENT)).await;
    let fresh = issue(&client, "u1", None).await;
    let unsampled = TRACEPARENT.replace("-01", "-00").replace("30313233", "39393939");
    let unsampled = issue(&client, "u2", Some(&unsampled)).await;
    for answer in [&continued, &fresh, &unsampled] {
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    assert_eq!(kept(&system).await, 2, "one for each sampled request");

    let before = system.keys().epoch();
    let _: u64 = system.command(&["DEL", &certificate(PartitionId::ONE)]).await;
    eventually("the data is rebuilt", async || {
        recovered(&system).await;
        (system.keys().epoch() != before).then_some(())
    })
    .await;
    let _worker = receiver.worker(&system).await;
    for answer in [&continued, &fresh, &unsampled] {
        assert_eq!(system.client.decided(&answer.id()).await.state(), "issued");
    }

    let span = receiver.request_span(&TRACE).await;
    assert_eq!(
        (span.name.as_str(), span.parent_span_id.as_slice()),
        ("POST /user-coupons", &b"one span"[..])
    );
    assert_eq!(text(&span.attributes, "http.route"), Some("/user-coupons"));
    let [attempt] = &receiver.attempts(&TRACE, 1).await[..] else { panic!("it was decided at once") };
    assert_eq!(attempt.status.clone().unwrap_or_default().code, 0, "{attempt:?}");
    assert_eq!(text(&attempt.attributes, "coupon.issuance"), Some(continued.id().as_str()));
    receiver.assert_linked(&span, attempt).await;

    let trace = eventually("the other request is a trace of its own", async || {
        let attempts = receiver.spans().into_iter().filter(|one| one.span.name == "decide");
        let of_fresh =
            attempts.filter(|one| text(&one.span.attributes, "coupon.issuance") == Some(fresh.id().as_str()));
        of_fresh.map(|one| one.span.trace_id).next()
    })
    .await;
    let span = receiver.request_span(&trace).await;
    assert!(span.parent_span_id.is_empty(), "{span:?}");
    receiver.assert_linked(&span, &receiver.attempts(&trace, 1).await[0]).await;

    let unsampled = [&b"9999"[..], &TRACE[4..]].concat();
    assert!(receiver.of_trace(&unsampled).is_empty());
    let traced = log.says("\"trace_id\":\"30313233343536373839616263646566\"").await;
    assert!(traced.contains("\"request\":"), "{traced}");
    eventually("what is settled is forgotten", async || (kept(&system).await == 0).then_some(())).await;
    let tells_users = |received: &ReceivedSpan| format!("{received:?}").contains("u0");
    assert!(!receiver.spans().iter().any(tells_users), "spans name no user");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_attempt_at_what_is_refused_is_in_the_requests_trace_and_so_is_what_was_redriven() {
    let (receiver, system) = (SpanReceiver::start().await, System::start().await);
    system.users("u", 2).await;
    system.coupon("c", 9, 1).await;
    let mut api = receiver.fed_by(API, &system);
    api.args(["--listen", "127.0.0.1:0", "--audit-every", "0"]);
    let (_api, address) = serving(api).await;
    let client = Client::new(address);
    system.poison(Some("u0")).await;
    let accepted = issue(&client, "u0", Some(TRACEPARENT)).await;
    let other = issue(&client, "u1", None).await;
    let _worker = receiver.worker(&system).await;
    let path = format!("/dead-letters/{}", accepted.id());
    eventually("it is set aside", async || (client.get(&path).await.status == 200).then_some(())).await;
    assert_eq!(client.decided(&other.id()).await.state(), "issued");
    let span = receiver.request_span(&TRACE).await;
    let refused = receiver.attempts(&TRACE, 2).await;
    for attempt in &refused {
        assert_eq!(text(&attempt.attributes, "error.type"), Some("refused"), "{attempt:?}");
        receiver.assert_linked(&span, attempt).await;
    }

    system.poison(None).await;
    assert_eq!(client.send(client.request("POST", &format!("{path}/redrive"))).await.status, 200);
    assert_eq!(client.decided(&accepted.id()).await.state(), "issued");
    let issued = eventually("the last attempt comes", async || {
        let attempts = receiver.attempts(&TRACE, refused.len() + 1).await;
        attempts.into_iter().find(|attempt| text(&attempt.attributes, "error.type").is_none())
    })
    .await;
    receiver.assert_linked(&span, &issued).await;
}

#[tokio::test]
async fn only_what_is_accepted_keeps_its_span_and_a_key_of_a_wrong_type_harms_nothing() {
    let system = System::start().await;
    let coupon = system.coupon("c", 2, 1).await;
    let traced = |user: &str, number: u64, is_keyed: bool| {
        let context =
            SpanContext::new(7_u128.into(), number.into(), TraceFlags::SAMPLED, false, TraceState::NONE);
        let mut request = request(user, &coupon);
        if is_keyed {
            let key = "k".parse().expect("a key");
            request.id = IssuanceId::from_key(PartitionId::ONE, None, &request.user, &coupon, &key);
            request.key = Some(coupon_system::issuance::KeyTag::new(None, &request.user, &key));
        }
        request.trace = TraceParent::of(&context).map(Arc::new);
        assert!(request.trace.is_some());
        request
    };
    let requests =
        [traced("u0", 1, false), traced("u1", 2, true), traced("u1", 3, true), traced("u2", 4, false)];
    let reserved = reserve(system.partition(), &requests, NO_BACKLOG_MAX, QueueEntries::OfMany).await;
    let reserved = reserved.expect("answers");
    let [Reserved::Accepted(_), Reserved::Accepted(_), Reserved::Replayed(_), Reserved::SoldOut] =
        &reserved[..]
    else {
        panic!("{reserved:?}")
    };
    assert_eq!(kept(&system).await, 2);
    for request in &requests[..2] {
        let id = request.id.as_bytes();
        let mut command = redis::cmd("HGET");
        command.arg(trace_parents(PartitionId::ONE)).arg(id.as_slice());
        let kept: Vec<u8> = command.query_async(&mut system.partition().connection()).await.expect("a span");
        assert_eq!(TraceParent::from_bytes(&kept), request.trace.as_deref().copied());
    }
    let expires: i64 = system.command(&["TTL", &trace_parents(PartitionId::ONE)]).await;
    assert!((1..=3_600).contains(&expires), "{expires}");

    let _: String = system.command(&["SET", &trace_parents(PartitionId::ONE), "text"]).await;
    system.coupon("d", 1, 1).await;
    let request = coupon_system::issuance::reserve::Request {
        coupon: "d".parse().expect("an id"),
        ..traced("u3", 5, false)
    };
    let reserved = reserve(system.partition(), &[request], NO_BACKLOG_MAX, QueueEntries::OfMany).await;
    assert!(matches!(reserved.expect("an answer")[..], [Reserved::Accepted(_)]));
    system.leaves_in_flight();
}

#[tokio::test]
async fn without_an_endpoint_nothing_of_a_trace_is_kept() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 1, 1).await;
    assert_eq!(issue(&system.client, "u0", Some(TRACEPARENT)).await.status, 202);
    assert_eq!(kept(&system).await, 0);
    system.drain().await;
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_used_prevents_the_start_and_is_not_repeated() {
    let system = System::start().await;
    for (name, value, told) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "hunter2", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "grpc",
            "OTEL_EXPORTER_OTLP_PROTOCOL: this program speaks http/protobuf",
        ),
    ] {
        let mut worker = program(WORKER, &system);
        worker
            .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1]:1");
        let output = worker.env(name, value).output().await.expect("it ends");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{error}");
        assert!(error.contains(told) && !error.contains("hunter2"), "{error}");
    }
}
