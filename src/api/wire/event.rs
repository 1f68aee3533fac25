//! Server-sent events: their shape for the documentation, and the answer that carries them.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use utoipa::ToSchema;

/// A stream ends after this; the client connects again.
pub(crate) const STREAM_MAX: Duration = Duration::from_secs(5 * 60);
/// A stream without events sends a comment this often, so that no proxy takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Proxies that would collect an answer pass this one on as it comes, and nothing keeps it.
const STREAMED: [(HeaderName, &str); 2] =
    [(HeaderName::from_static("x-accel-buffering"), "no"), (header::CACHE_CONTROL, "no-store")];

/// The answer that sends these events.
pub(crate) fn event_stream(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> Response {
    (STREAMED, Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))).into_response()
}

/// One event of a stream.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documents what is written elsewhere")]
pub(crate) struct ServerEvent {
    /// What it is about.
    event: String,
    /// Give it back as `Last-Event-ID` to go on after this event.
    #[schema(required = false, value_type = String)]
    id: Option<String>,
    /// JSON, or a code.
    data: String,
    /// Connect again after this many milliseconds.
    #[schema(required = false, value_type = u32)]
    retry: Option<u32>,
}
