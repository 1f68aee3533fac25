//! Slots move from one node to another.

use coupon_system::dev::servers::RedisServer;
use coupon_system::redis::RedisNodes;
use redis::cmd;

use super::tell;
use crate::helpers::{System, accounts_hold, cluster, eventually, recovered};

/// The slot of `{0}`, by CLUSTER KEYSLOT.
const SLOT: &str = "13907";
/// The slot of `{1}`, which lies on the second of three nodes.
const SLOT_OF_ONE: &str = "9842";

async fn node_id(node: &RedisServer) -> String {
    tell(node, &["CLUSTER", "MYID"]).await
}

/// Says to all nodes that the slot is the target's, to the target first.
async fn assign(slot: &str, target: &RedisServer, others: &[&RedisServer]) {
    let id = node_id(target).await;
    for node in [target].into_iter().chain(others.iter().copied()) {
        tell::<()>(node, &["CLUSTER", "SETSLOT", slot, "NODE", &id]).await;
    }
}

#[tokio::test]
async fn a_slot_that_moved_is_found_with_the_first_call() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = cluster(&folder, 0).await;
    let nodes = RedisNodes::open(&cluster.url()).expect("a URL");
    let mut connection = nodes.client_of("1").connection();
    let mut replacements = nodes.client_of("1").replacements();
    let mut others = nodes.client_of("0").replacements();
    let slot: u16 = tell(&cluster.nodes[0], &["CLUSTER", "KEYSLOT", "{1}"]).await;
    assert_eq!(slot.to_string(), SLOT_OF_ONE);
    let () = cmd("SET").arg("a:{1}").arg(1).query_async(&mut connection).await.expect("it is written");
    let () = cmd("DEL").arg("a:{1}").query_async(&mut connection).await.expect("it is deleted");
    assert!(replacements.have_changed(), "the map was unknown");
    others.have_changed();
    let [target, from, other] = &cluster.nodes[..] else { panic!("three nodes") };
    assign(SLOT_OF_ONE, target, &[from, other]).await;
    let () = cmd("SET").arg("a:{1}").arg(2).query_async(&mut connection).await.expect("it is written there");
    let read: u32 = tell(target, &["GET", "a:{1}"]).await;
    assert_eq!(read, 2);
    assert!(replacements.have_changed(), "who has a connection of their own must make another");
    assert!(!others.have_changed(), "who has one for another slot need not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_moved_partition_is_refused_and_a_moved_one_is_recovered_where_it_lies() {
    let folder = tempfile::tempdir().expect("a folder");
    let system = System::builder().cluster(cluster(&folder, 0).await).start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let users = system.users("u", 3).await;
    let kept = system.client.issue(&users[0], "c", None).await;
    assert_eq!(kept.status, 202, "{kept:?}");

    let (from, target, other) = (&system.redis, &system.other_nodes[0], &system.other_nodes[1]);
    tell::<()>(target, &["CLUSTER", "SETSLOT", SLOT, "IMPORTING", &node_id(from).await]).await;
    tell::<()>(from, &["CLUSTER", "SETSLOT", SLOT, "MIGRATING", &node_id(target).await]).await;
    let refused = system.client.issue(&users[1], "c", None).await;
    assert_eq!((refused.status, refused.header("retry-after").is_empty()), (503, false), "{refused:?}");

    let port = target.port().to_string();
    eventually("all keys have moved", async || {
        let keys: Vec<String> = tell(from, &["CLUSTER", "GETKEYSINSLOT", SLOT, "100"]).await;
        for key in &keys {
            let _: String = tell(from, &["MIGRATE", "127.0.0.1", &port, key, "0", "5000", "REPLACE"]).await;
        }
        keys.is_empty().then_some(())
    })
    .await;
    assign(SLOT, target, &[from, other]).await;
    recovered(&system).await;
    let worker = system.worker();
    assert_eq!(system.client.decided(&kept.id()).await.state(), "issued");
    let there = system.client.issue(&users[2], "c", None).await;
    assert_eq!(there.status, 202, "{there:?}");
    assert_eq!(system.client.decided(&there.id()).await.state(), "issued");
    worker.cancel();
    accounts_hold(&system, &coupon).await;
    let run_id: redis::InfoDict = tell(target, &["INFO", "server"]).await;
    let certified: String = system
        .command(&["HGET", &coupon_system::redis::keys::certificate(system.partition().id()), "run_id"])
        .await;
    assert_eq!(run_id.get::<String>("run_id"), Some(certified));
}
