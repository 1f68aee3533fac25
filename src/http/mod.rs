//! What API and worker share of a server: connections, what every request passes through, and problems; and TLS of
//! clients.

mod activity;
pub(crate) mod addresses;
mod answer;
pub(crate) mod concurrency;
mod connection;
pub(crate) mod connection_runtimes;
mod connections;
pub(crate) mod cors;
pub(crate) mod forwarded;
mod headers;
pub(crate) mod host;
mod keep_alive;
pub(crate) mod language;
pub(crate) mod parameters;
pub(crate) mod problem;
mod queue_delay;
pub mod request;
mod request_metrics;
mod request_span;
pub(crate) mod server;
pub(crate) mod tls;

pub use language::Language;
pub use problem::{Code, Problem};
