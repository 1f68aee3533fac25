//! Several Redis servers: the nodes of a cluster, or a primary and its replica, and Sentinels.

mod acknowledging;
mod away;
mod booting;
mod failovers;
mod hanging;
mod migrating;
mod moving;
mod rewriting;
mod rushing;
mod sentinels;
mod serving;
mod slots;
mod spread;

use std::time::Duration;

use coupon_system::dev::servers::{RedisOptions, RedisServer};
use tempfile::TempDir;

use crate::helpers::eventually;

/// Sends a command to one server, given as words.
async fn tell<T: redis::FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    let client = redis::Client::open(server.url()).expect("a URL");
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(10)));
    let connection = client.get_multiplexed_async_connection_with_config(&config).await;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut connection.expect("it answers")).await.expect("it does it")
}

/// Starts a replica, and waits until it has its primary's data.
async fn replica_of(primary: &RedisServer, folder: &TempDir) -> RedisServer {
    let mut options = RedisOptions::new(folder.path().join("replica"));
    options.extra_args = vec!["--replicaof".into(), format!("127.0.0.1 {}", primary.port()).into()];
    let replica = RedisServer::start(options).await.expect("a replica");
    eventually("the replica follows", async || {
        let replication: String = tell(&replica, &["INFO", "replication"]).await;
        replication.contains("master_link_status:up").then_some(())
    })
    .await;
    replica
}
