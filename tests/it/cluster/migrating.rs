//! Slots move in the middle of a sale: at once, as Valkey moves them, or key by key to a node that was added.

use std::time::Duration;

use coupon_system::dev::servers::{
    RedisCluster, RedisEngine, RedisServer, join, migrate_slots, move_by_key, slot_owners,
};
use coupon_system::ids::{PartitionId, slot_of};

use super::rushing::{Sale, rush_meets};
use crate::helpers::{NotFound, System, cluster_of, cluster_options};

/// It takes 20 s at least unless the slots have moved before.
const SALE: Sale = Sale { total: 1_000, users: 1_200, pause: Duration::from_millis(20) };

/// The slot of the partition that the rush is for.
fn slot() -> u16 {
    slot_of(PartitionId::ONE.tag())
}

/// Lets a sale meet a move of slots, with which nothing may be lost. Returns how often the answer was 503.
async fn sale_meets(cluster: RedisCluster, moving: impl AsyncFnOnce(&System)) -> u64 {
    rush_meets(cluster, SALE, NotFound::IsAFault, async |system| {
        moving(system).await;
        let coupon = "c".parse().expect("an id");
        let issued = system.backends.ledger.issued_count(&coupon).await.expect("a count");
        assert!(issued < u64::from(SALE.total), "the slots have moved in the middle of the sale");
    })
    .await
}

/// Asserts that the nodes say that the slot of the partition lies on this one.
async fn serves(node: &RedisServer, asked: &[&RedisServer]) {
    for asked in asked {
        let owners = slot_owners(asked).await.expect("it says who serves what");
        let owner = owners.iter().find(|range| range.slots.contains(&slot())).expect("a node has it");
        assert_eq!(owner.port, node.port(), "{owners:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_migrate_at_once_in_the_middle_of_a_sale_take_everything_with_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = cluster_of(&cluster_options(&folder, 0, RedisEngine::Valkey)).await;
    sale_meets(cluster, async |system| {
        let (from, to) = (&system.redis, &system.other_nodes[0]);
        let moved = migrate_slots(&(slot() - 100..=slot() + 100), from, to).await;
        moved.unwrap_or_else(|error| panic!("the slots do not migrate: {error:#}"));
        serves(to, &[from, to]).await;
    })
    .await;
}

/// Adds a node, and in the middle of a sale moves the slots around that of its coupon there, key by key.
async fn a_node_is_added(engine: RedisEngine) {
    let folder = tempfile::tempdir().expect("a folder");
    let options = cluster_options(&folder, 0, engine);
    let cluster = cluster_of(&options).await;
    let nodes: Vec<&RedisServer> = cluster.nodes.iter().collect();
    let added = join(&options, nodes.len(), &nodes, None).await.expect("it joins");
    let refused = sale_meets(cluster, async |system| {
        let others: Vec<&RedisServer> = system.other_nodes.iter().collect();
        let moved = move_by_key(&(slot() - 1..=slot() + 1), &system.redis, &added, &others).await;
        moved.unwrap_or_else(|error| panic!("the slots do not move: {error:#}"));
        serves(&added, &others).await;
    })
    .await;
    assert!(refused > 0, "while the slot was half moved, the answer was 503");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_added_to_a_redis_cluster_serves_the_coupons_of_its_slots() {
    a_node_is_added(RedisEngine::Redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_added_to_a_valkey_cluster_serves_the_coupons_of_its_slots() {
    a_node_is_added(RedisEngine::Valkey).await;
}
