//! Everything on one machine, for development: the servers that the system needs, as child processes.

pub mod servers;
