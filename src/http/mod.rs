//! What API and worker share: the server, problems, and reading requests strictly; and TLS of clients.

pub mod accept;
mod activity;
pub mod addresses;
pub mod advice;
mod answer;
pub mod concurrency;
mod connection;
pub mod connection_runtimes;
mod connections;
pub mod cors;
pub mod fields;
pub mod forwarded;
mod headers;
pub mod host;
mod keep_alive;
pub mod language;
mod media_type;
pub mod parameters;
pub mod problem;
mod queue_delay;
pub mod request;
mod request_metrics;
pub mod server;
mod strict;
pub mod tls;

pub use fields::Fields;
pub use language::Language;
pub use problem::{Code, Problem};
