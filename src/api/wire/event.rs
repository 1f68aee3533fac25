//! The shape of a server-sent event, for the documentation; axum writes it.

use utoipa::ToSchema;

/// One event of a stream.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documents what is written elsewhere")]
pub struct ServerEvent {
    /// What it is about.
    event: String,
    /// JSON, or a code.
    data: String,
    /// Connect again after so many milliseconds.
    retry: Option<u32>,
}
