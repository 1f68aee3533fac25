//! The span of a request, if the process traces: a part of the trace that the client's `traceparent` names, or the
//! first of a new one. It names the route and not the path, because paths name users.

use axum::http::{HeaderMap, Method, StatusCode};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceId, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::Span;

use super::request_metrics::method_name;
use crate::runtime::traces::{self, TraceParent};

/// Probes and scrapes come every few seconds and tell nothing.
const UNTRACED: [&str; 4] = ["/livez", "/healthz", "/readyz", "/metrics"];

/// The span of a request.
pub(super) struct RequestSpan(Span);

impl RequestSpan {
    /// Starts it; `None` if the process does not trace, or not this route.
    pub fn start(route: Option<&str>, method: &Method, headers: &HeaderMap) -> Option<Box<Self>> {
        let tracer = traces::tracer()?;
        if route.is_some_and(|route| UNTRACED.contains(&route)) {
            return None;
        }
        let method = method_name(method);
        let (name, route) = match route {
            Some(route) => (format!("{method} {route}"), Some(KeyValue::new("http.route", route.to_owned()))),
            None => (method.to_owned(), None),
        };
        let attributes = [KeyValue::new("http.request.method", method)].into_iter().chain(route);
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let span = tracer.span_builder(name).with_kind(SpanKind::Server).with_attributes(attributes);
        Some(Box::new(RequestSpan(span.start_with_context(tracer, &parent))))
    }

    /// The id of its trace.
    pub fn trace_id(&self) -> TraceId {
        self.0.span_context().trace_id()
    }

    /// What continues it elsewhere; `None` if it is not sampled.
    pub fn parent(&self) -> Option<TraceParent> {
        TraceParent::of(self.0.span_context())
    }

    /// Ends it with the answer. `problem` is the code of its problem, or empty.
    pub fn end(mut self, status: StatusCode, problem: &'static str) {
        self.0.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if !problem.is_empty() {
            self.0.set_attribute(KeyValue::new("coupon.problem", problem));
        }
        if status.is_server_error() {
            self.0.set_attribute(KeyValue::new("error.type", problem));
            self.0.set_status(Status::error(""));
        }
        self.0.end();
    }
}
