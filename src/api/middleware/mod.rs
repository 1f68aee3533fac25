//! What a request passes through before its handler.

pub(crate) mod address_limit;
pub(crate) mod guard;
pub(crate) mod record;
pub(crate) mod shedding;
pub(crate) mod user_limit;
