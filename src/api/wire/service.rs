//! The state of the whole service on the wire.

use serde::Serialize;
use utoipa::ToSchema;

/// Whether the service accepts requests.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Service {
    /// Nothing new is accepted; what was accepted is decided.
    pub paused: bool,
}
