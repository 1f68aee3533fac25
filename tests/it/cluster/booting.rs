//! What a process asserts of the nodes before it starts.

use clap::Parser;
use coupon_system::config::WorkerCommand;
use coupon_system::process;
use coupon_system::recovery::Deployment;

use super::tell;
use crate::helpers::{cluster, database, mongodb, supervisor};

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

#[tokio::test]
async fn a_primary_that_is_dead_keeps_no_process_from_starting() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = cluster(&folder, 0).await;
    let (url, mongodb, database) = (cluster.url(), mongodb().await, database());
    let flags = ["worker", "--redis-url", &url, "--mongodb-uri", &mongodb, "--mongodb-database", &database];
    let command = WorkerCommand::parse_from(flags);
    cluster.nodes[0].kill().await.expect("it dies");
    let backends = process::connect(&command.redis, &command.mongodb).await.expect("it starts");
    // What lies on the others can be served.
    let mut certified = 0;
    for supervisor in backends.recovery_supervisors() {
        certified += usize::from(supervisor.ensure().await.unwrap_or(false));
    }
    let all = backends.partitions.iter().count();
    assert!((all / 2..all * 3 / 4).contains(&certified), "{certified} of {all}");
}

#[tokio::test]
async fn a_deployment_grows_only_once_it_is_certain_that_its_redis_and_its_ledger_belong_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = cluster(&folder, 0).await;
    let (url, mongodb, databases) = (cluster.url(), mongodb().await, [database(), database()]);
    let commands = databases.each_ref().map(|database| {
        let flags =
            ["worker", "--redis-url", &url, "--mongodb-uri", &mongodb, "--mongodb-database", database];
        WorkerCommand::parse_from(flags)
    });
    let [own, other] = &commands;
    let backends = process::connect(&own.redis, &own.mongodb).await.expect("it starts");
    assert!(supervisor(&backends).ensure().await.expect("a first recovery"));
    let refused = process::connect(&other.redis, &other.mongodb).await.err().expect("it is another's");
    assert!(refused.to_string().contains("belongs to another MongoDB database"), "{refused}");
    let elsewhere = process::open(&other.redis, &other.mongodb).await.expect("it connects").database;
    assert_eq!(Deployment::read(&elsewhere).await.expect("it is read").partitions, 0, "it never shrinks");
    assert!(Deployment::read(&backends.database).await.expect("it is read").partitions > 0);
}
