//! One ledger is served by one Redis, whichever server an address leads to: after a failover under open connections,
//! beside a second Redis, when an old primary comes back, and with two deployments in one Redis.

mod deployment;
mod failover;
mod openings;
mod probes;
mod second_redis;
