//! What the tests stand on: servers, the system on them, and a client.

mod client;
mod servers;
mod system;

pub use client::{Answer, Client};
pub use servers::{database, mongodb, redis};
pub use system::{System, at, eventually};
