//! What the tests stand on: servers, the system on them, and a client.

mod client;
mod processes;
mod servers;
mod system;

pub use client::{Answer, Client};
pub use processes::{API, CTL, WORKER, program, send, serving, stopped};
pub use servers::{database, mongodb, redis};
pub use system::{System, at, eventually};
