//! What a process asserts of the nodes before it starts.

use clap::Parser;
use coupon_system::config::WorkerCommand;
use coupon_system::process;

use super::tell;
use crate::helpers::{cluster, database, mongodb};

#[tokio::test]
async fn no_process_starts_on_a_cluster_of_which_a_dead_node_stops_all_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = cluster(&folder, 0).await;
    let (url, mongodb, database) = (cluster.url(), mongodb().await, database());
    let flags = ["worker", "--redis-url", &url, "--mongodb-uri", &mongodb, "--mongodb-database", &database];
    let command = WorkerCommand::parse_from(flags);
    process::connect(&command.redis, &command.mongodb).await.expect("it may start");
    let _: String = tell(&cluster.nodes[1], &["CONFIG", "SET", "cluster-require-full-coverage", "yes"]).await;
    let Err(refused) = process::connect(&command.redis, &command.mongodb).await else { panic!("it starts") };
    let expected = format!(
        "Redis 127.0.0.1:{} has cluster-require-full-coverage yes, but it must be no",
        cluster.nodes[1].port()
    );
    assert!(refused.to_string().contains(&expected), "{refused}");
}
