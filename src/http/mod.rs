//! What API and worker share of a server: connections, what every request passes through, and problems; and TLS of
//! clients.

mod activity;
pub mod addresses;
mod answer;
pub mod concurrency;
mod connection;
pub mod connection_runtimes;
mod connections;
pub mod cors;
pub mod forwarded;
mod headers;
pub mod host;
mod keep_alive;
pub mod language;
pub mod parameters;
pub mod problem;
mod queue_delay;
pub mod request;
mod request_metrics;
pub mod server;
pub mod tls;

pub use language::Language;
pub use problem::{Code, Problem};
