//! What requests pass through before a handler sees them.

pub(crate) mod address_limit;
pub(crate) mod guard;
pub(crate) mod record;
pub(crate) mod shedding;
