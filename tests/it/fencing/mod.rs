//! One ledger is served by one Redis, whichever server an address leads to: after a failover under open connections,
//! beside a second Redis, when an old primary comes back, on a cluster that takes the place of one Redis, and with two
//! deployments in one Redis.

mod cluster;
mod deployment;
mod failover;
mod openings;
mod probes;
mod second_redis;
