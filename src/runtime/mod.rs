//! What any long-running program needs, whatever it does: batching, backoff, shutdown, logging, limits of the
//! operating system.

pub mod background;
pub(crate) mod backoff;
pub mod batch;
pub(crate) mod damage;
pub mod fd_limit;
pub(crate) mod shared_work;
pub mod shutdown;
pub(crate) mod tasks;
pub(crate) mod telemetry;
pub mod traces;
