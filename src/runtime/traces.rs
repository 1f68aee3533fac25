//! Traces (OpenTelemetry): the tracer of this process, and what the parts of one trace tell each other. Without a
//! tracer nothing is traced, and nothing more is paid than the question whether there is one.

use std::sync::OnceLock;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::SdkTracer;

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The tracer, if this process traces.
pub(crate) fn tracer() -> Option<&'static SdkTracer> {
    TRACER.get()
}

/// Traces with this from now on. The first tracer of a process stays.
pub(crate) fn set_tracer(tracer: SdkTracer) {
    let _ = TRACER.set(tracer);
}

/// A span that others continue, of a trace that is sampled: trace id (16 bytes), span id (8) and flags (1), as in the
/// `traceparent` of W3C Trace Context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent([u8; 25]);

impl TraceParent {
    /// The span of this context; `None` if it is not sampled.
    pub fn of(context: &SpanContext) -> Option<Self> {
        if !(context.is_valid() && context.is_sampled()) {
            return None;
        }
        let mut bytes = [0; 25];
        bytes[..16].copy_from_slice(&context.trace_id().to_bytes());
        bytes[16..24].copy_from_slice(&context.span_id().to_bytes());
        bytes[24] = context.trace_flags().to_u8();
        Some(TraceParent(bytes))
    }

    /// The 25 bytes.
    pub fn as_bytes(&self) -> &[u8; 25] {
        &self.0
    }

    /// Reads them; `None` if they are those of no sampled span.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let read = TraceParent(bytes.try_into().ok()?);
        TraceParent::of(&read.context())
    }

    /// The span, as one of another process.
    pub fn context(&self) -> SpanContext {
        let (trace, span) = (self.0.first_chunk().copied(), self.0[16..].first_chunk().copied());
        SpanContext::new(
            TraceId::from_bytes(trace.unwrap_or_default()),
            SpanId::from_bytes(span.unwrap_or_default()),
            TraceFlags::new(self.0[24]),
            true,
            TraceState::NONE,
        )
    }

    /// The context of a span that continues this one.
    pub(crate) fn child_context(&self) -> Context {
        Context::new().with_remote_span_context(self.context())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_survives_its_bytes_and_only_a_sampled_span_is_one() {
        let context = |trace: u128, span: u64, flags: TraceFlags| {
            SpanContext::new(trace.into(), span.into(), flags, false, TraceState::NONE)
        };
        let parent = TraceParent::of(&context(7 << 64, 9, TraceFlags::SAMPLED)).unwrap();
        let read = TraceParent::from_bytes(parent.as_bytes()).unwrap();
        assert_eq!(read, parent);
        assert_eq!(
            (read.context().trace_id(), read.context().span_id()),
            (TraceId::from(7_u128 << 64), SpanId::from(9_u64))
        );
        assert!(read.context().is_remote());
        for (trace, span, flags) in
            [(7, 9, TraceFlags::NOT_SAMPLED), (0, 9, TraceFlags::SAMPLED), (7, 0, TraceFlags::SAMPLED)]
        {
            assert_eq!(TraceParent::of(&context(trace, span, flags)), None);
        }
        for wrong in [&[][..], &[1; 24], &[1; 26], &[0; 25]] {
            assert_eq!(TraceParent::from_bytes(wrong), None);
        }
    }
}
