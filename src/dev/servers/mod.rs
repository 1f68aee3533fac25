//! Finds, fetches and starts redis-server (or valkey-server) and mongod: the only launcher, for `couponctl dev`, the
//! bench and the tests.
//!
//! What holds for every server started here:
//! - It listens on 127.0.0.1 only, on a free port unless one is given.
//! - Its data folder belongs to it alone for as long as it runs (`data_dir`).
//! - It is ready when `start` or `restart` returns, and it is *this* process that answers: another
//!   process that holds the port is never mistaken for it.
//! - It does not outlive this process, not even after `kill -9`; and Ctrl-C at a terminal does not
//!   reach it, so that workers can drain before their servers go (`launch`).
//!
//! # Layout
//!
//! - `find`: where the programs are; runs `deploy/fetch-servers.sh`
//! - `redis`, `mongod`: what is particular to each: settings, arguments, when it is ready
//! - `cluster`: several redis-servers as one cluster, and how its nodes and slots change
//! - `server`: the life of either: start, stop, kill, restart, pause
//! - `process`, `launch`: one child process
//! - `data_dir`, `port`: what a server takes hold of
//! - `exit`: why a server ended at its start, and what to do about it

mod cluster;
mod data_dir;
mod exit;
mod find;
mod launch;
mod mongod;
mod port;
mod process;
mod redis;
mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use cluster::{
    ClusterOptions, RedisCluster, SlotRange, are_agreed, join, migrate_slots, move_by_key, slot_owners,
};
pub(crate) use find::find_all;
pub use find::{InstalledProgram, ServerProgram, find};
pub(crate) use launch::spawn as spawn_child;
pub use mongod::{MongoOptions, MongoServer};
pub use redis::{Persistence, RedisEngine, RedisOptions, RedisServer};
pub use server::{Server, ServerSpec};

/// The pause between two polls of a server.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
