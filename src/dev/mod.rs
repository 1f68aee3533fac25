//! Everything on one machine, for development: the servers that the system needs as child processes,
//! and the whole system on top of them.

pub mod servers;
pub mod stack;
