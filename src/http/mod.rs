//! What API and worker share: the server, problems, and reading requests strictly; and TLS of clients.

pub mod accept;
pub mod advice;
pub mod fields;
pub mod health;
pub mod language;
pub mod metrics;
pub mod problem;
pub mod request;
pub mod server;
pub mod tls;

pub use fields::Fields;
pub use language::Language;
pub use problem::{Code, Problem};
