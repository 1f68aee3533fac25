//! What every process has: connections that were checked, listeners, health, gauges, and an exit code.

pub mod aof_rewriter;
mod backends;
mod exit;
pub mod gauges;
pub mod health;
mod listener;
pub(crate) mod metrics_route;
mod traces;

pub use backends::{Backends, connect, connect_to_any, open};
pub use exit::exit;
pub use listener::{address, bind};
pub use traces::TraceExporter;
