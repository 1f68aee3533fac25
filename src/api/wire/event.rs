//! The shape of a server-sent event, for the documentation; axum writes it.

use utoipa::ToSchema;

/// One event of a stream.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documents what is written elsewhere")]
pub struct ServerEvent {
    /// What it is about.
    event: String,
    /// Give it back as `Last-Event-ID` to go on after this event.
    #[schema(required = false, value_type = String)]
    id: Option<String>,
    /// JSON, or a code.
    data: String,
    /// Connect again after so many milliseconds.
    #[schema(required = false, value_type = u32)]
    retry: Option<u32>,
}
