//! The spans of a batch, if the process traces and sampled requests are in it: one of the batch, which links the
//! requests that it works for, and for each of these requests one in its own trace, which links the batch. Each attempt
//! at a batch or an entry has such spans, so repeated attempts stand beside each other in the request's trace.

use std::collections::HashMap;
use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Link, Span as _, SpanKind, Status, Tracer};
use opentelemetry_sdk::trace::{SdkTracer, Span};

use super::decide::{BatchOutcome, Unsettled};
use crate::Failure;
use crate::ids::IssuanceId;
use crate::issuance::trace_parents;
use crate::queue::Entry;
use crate::redis::Partition;
use crate::runtime::traces::{self, TraceParent};

pub(super) struct BatchSpan<'a> {
    tracer: &'static SdkTracer,
    span: Span,
    started: SystemTime,
    requests: Vec<(&'a Entry, TraceParent)>,
}

impl<'a> BatchSpan<'a> {
    /// Starts the span of a batch; `None` if there is nothing to trace.
    pub(super) async fn start(partition: &Partition, entries: &'a [Entry]) -> Option<Self> {
        let tracer = traces::tracer()?;
        let started = SystemTime::now();
        let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        let parents = trace_parents::read(partition, &ids).await;
        let parents = parents.inspect_err(|failure| {
            tracing::debug!(error = failure.chain(), "a batch is not traced");
        });
        let parents = entries.iter().zip(parents.ok()?);
        let requests: Vec<_> = parents.filter_map(|(entry, parent)| Some((entry, parent?))).collect();
        if requests.is_empty() {
            return None;
        }
        let links = requests.iter().map(|(_, parent)| Link::with_context(parent.context())).collect();
        let span = tracer
            .span_builder("decide a batch")
            .with_kind(SpanKind::Consumer)
            .with_start_time(started)
            .with_links(links)
            .with_attributes(
                messaging("process")
                    .chain([KeyValue::new("messaging.batch.message_count", entries.len() as i64)]),
            )
            .start_with_context(tracer, &opentelemetry::Context::new());
        Some(BatchSpan { tracer, span, started, requests })
    }

    /// The span that the log lines of the batch are in.
    pub(super) fn log_span(&self) -> tracing::Span {
        tracing::info_span!("batch", trace_id = %self.span.span_context().trace_id())
    }

    /// Ends the spans, and forgets those of the requests that are settled.
    pub(super) async fn end(mut self, partition: &Partition, result: &Result<BatchOutcome, Failure>) {
        let mut settled = Vec::new();
        let left: HashMap<IssuanceId, &Unsettled> = match result {
            Ok(BatchOutcome::Here(left)) => left.iter().map(|(entry, why)| (entry.id, why)).collect(),
            _ => HashMap::new(),
        };
        for (entry, parent) in &self.requests {
            let error = match (result, left.get(&entry.id)) {
                (Ok(BatchOutcome::Here(_)), None) => {
                    settled.push(entry.id);
                    None
                }
                (Ok(BatchOutcome::Here(_)), Some(why)) => Some(why.as_str()),
                (Ok(BatchOutcome::AnotherEpoch), _) => Some("another-epoch"),
                (Err(_), _) => Some("failed"),
            };
            let attributes = [
                KeyValue::new("coupon.id", entry.coupon.to_string()),
                KeyValue::new("coupon.issuance", entry.id.to_string()),
            ];
            let mut attempt = self
                .tracer
                .span_builder("decide")
                .with_kind(SpanKind::Consumer)
                .with_start_time(self.started)
                .with_links(vec![Link::with_context(self.span.span_context().clone())])
                .with_attributes(messaging("process").chain(attributes))
                .start_with_context(self.tracer, &parent.child_context());
            fail(&mut attempt, error);
            attempt.end();
        }
        fail(&mut self.span, result.is_err().then_some("failed"));
        self.span.end();
        if !settled.is_empty()
            && let Err(failure) = trace_parents::forget(partition, &settled).await
        {
            tracing::debug!(error = failure.chain(), "the spans of settled requests are left to expire");
        }
    }
}

/// The attributes of work on the queue.
fn messaging(operation: &'static str) -> impl Iterator<Item = KeyValue> {
    [("messaging.system", "redis"), ("messaging.operation.type", operation)]
        .into_iter()
        .map(|(name, value)| KeyValue::new(name, value))
}

fn fail(span: &mut Span, error: Option<&'static str>) {
    if let Some(error) = error {
        span.set_attribute(KeyValue::new("error.type", error));
        span.set_status(Status::error(""));
    }
}
