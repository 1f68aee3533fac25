//! Several Redis servers: the nodes of a cluster, or a primary and its replica, and Sentinels.

mod acknowledging;
mod away;
mod booting;
mod failovers;
mod hanging;
mod moving;
mod rewriting;
mod sentinels;
mod serving;
mod slots;
mod spread;

use std::time::Duration;

use coupon_system::dev::servers::RedisServer;

/// Sends a command to one server, given as words.
async fn tell<T: redis::FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    let client = redis::Client::open(server.url()).expect("a URL");
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(10)));
    let connection = client.get_multiplexed_async_connection_with_config(&config).await;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut connection.expect("it answers")).await.expect("it does it")
}
