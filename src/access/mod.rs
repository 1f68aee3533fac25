//! Who sends a request.

mod caller;

pub use caller::{Caller, Role};
