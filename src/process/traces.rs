//! Sends traces by OTLP (HTTP, protobuf). Off unless the environment names an endpoint.
//!
//! The settings are OpenTelemetry's standard variables and no flags, so that they are those of every other program of
//! a deployment: `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`), `…_HEADERS`, `OTEL_TRACES_SAMPLER`,
//! `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_…` and the rest that the SDK reads.
//!
//! The spans are made by hand where they begin and end ([`crate::http`], [`crate::worker`]), not out of every span and
//! event of `tracing`: a trace needs few, and a log line is no part of it.

use std::time::Duration;

use opentelemetry::trace::{Link, SpanKind, TraceId, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Config, SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample};

use crate::failure::SetUpError;
use crate::http::tls;
use crate::runtime::traces;

/// The environment names one of them, or nothing is traced.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
/// The protocol that this program speaks.
const PROTOCOL: &str = "http/protobuf";
/// A collector that does not answer within this has not got the spans.
const EXPORT_MAX: Duration = Duration::from_secs(10);
/// At the end of a process what is left is sent within this.
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// A batch of a worker links the requests that it works for: as many as a batch can have.
const LINKS_MAX: u32 = 1_000;

/// Sends spans while the process runs.
pub struct TraceExporter(Option<SdkTracerProvider>);

impl TraceExporter {
    /// Starts to trace, as the service `name` unless the environment names it otherwise.
    ///
    /// # Errors
    /// The environment names an endpoint to which no traces can be sent.
    pub fn start(name: &'static str) -> Result<Self, SetUpError> {
        let is_disabled = variable("OTEL_SDK_DISABLED")
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || variable("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none");
        let endpoint = ENDPOINTS.into_iter().find(|name| variable(name).is_some());
        let Some(endpoint) = endpoint.filter(|_| !is_disabled) else { return Ok(TraceExporter(None)) };
        let protocol = PROTOCOLS.into_iter().find_map(|name| Some((name, variable(name)?)));
        if let Some((name, _)) = protocol.filter(|(_, protocol)| protocol != PROTOCOL) {
            return Err(SetUpError(vec![format!("{name}: this program speaks {PROTOCOL} only")]));
        }
        let exporter = exporter().map_err(|error| {
            // Not what it says: the URL in it may have a password.
            tracing::debug!(%error, "traces cannot be sent");
            SetUpError(vec![format!(
                "{endpoint}: traces cannot be sent there; it must be an http or https URL"
            )])
        })?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource(name))
            .with_sampler(sampler());
        let provider = match variable("OTEL_SPAN_LINK_COUNT_LIMIT") {
            Some(_) => provider,
            None => provider.with_max_links_per_span(LINKS_MAX),
        }
        .build();
        traces::set_tracer(provider.tracer("coupon-system"));
        Ok(TraceExporter(Some(provider)))
    }

    /// Sends what is left.
    pub async fn finish(self) {
        let Some(provider) = self.0 else { return };
        let finished = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_MAX)).await;
        if let Ok(Err(error)) = finished {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// The value of a variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn exporter() -> anyhow::Result<SpanExporter> {
    let tls = tls::client()?;
    // A blocking client must not be made by a thread of the runtime; the SDK sends from a thread of its own.
    let made = std::thread::spawn(move || {
        reqwest::blocking::Client::builder().tls_backend_preconfigured(tls).timeout(EXPORT_MAX).build()
    });
    let client = made.join().map_err(|_| anyhow::anyhow!("no thread"))??;
    Ok(SpanExporter::builder().with_http().with_http_client(client).build()?)
}

fn resource(name: &'static str) -> Resource {
    let resource = Resource::builder();
    let names_itself =
        |attributes: String| attributes.split(',').any(|one| one.trim().starts_with("service.name="));
    let is_named = variable("OTEL_SERVICE_NAME").is_some()
        || variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(names_itself);
    let resource = if is_named { resource } else { resource.with_service_name(name) };
    resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build()
}

/// The sampler of the environment; but the batch that works for a sampled request is sampled in any case.
fn sampler() -> Box<dyn ShouldSample> {
    let sampler = Config::default().sampler;
    match variable("OTEL_TRACES_SAMPLER").as_deref() {
        Some("always_off") => sampler,
        _ => Box::new(LinkBased(sampler)),
    }
}

#[derive(Debug, Clone)]
struct LinkBased(Box<dyn ShouldSample>);

impl ShouldSample for LinkBased {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let mut result = self.0.should_sample(parent, trace, name, kind, attributes, links);
        if links.iter().any(|link| link.span_context.is_sampled()) {
            result.decision = SamplingDecision::RecordAndSample;
        }
        result
    }
}
