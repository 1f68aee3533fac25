//! Who sends a request, on the wire.

use serde::Serialize;
use utoipa::ToSchema;

use crate::access::{Caller, Role};

/// The sender of a request, as the service knows them.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Caller)]
pub(crate) struct KnownCaller {
    /// The name of the key, or `open` if the service asks for no credentials.
    #[schema(example = "hong")]
    who: String,
    /// What the sender may do: `operator` or `viewer`.
    #[schema(example = "operator")]
    role: &'static str,
}

impl From<Caller> for KnownCaller {
    fn from(caller: Caller) -> Self {
        match caller {
            Caller::Key { name, role, .. } => KnownCaller { who: name, role: role.as_str() },
            // Whoever gets here without a key may do everything.
            other => KnownCaller { who: other.to_string(), role: Role::Operator.as_str() },
        }
    }
}
