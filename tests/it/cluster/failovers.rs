//! The primary of a partition's slot dies, freezes or gives its place up, and its replica is promoted.

use std::time::Duration;

use tokio::time::Instant;

use super::rushing::{Sale, rush_meets};
use super::tell;
use crate::helpers::{NotFound, System, cluster, recovered};

/// The replica of the partition's node: the third of the replicas, behind two primaries.
const REPLICA: usize = 4;

/// Lets a rush meet a failover, which may lose what was accepted. Returns how often the answer was 503.
async fn rush_meets_failover(failover: impl AsyncFnOnce(&mut System)) -> u64 {
    let folder = tempfile::tempdir().expect("a folder");
    let sale = Sale { total: 400, users: 600, pause: Duration::ZERO };
    rush_meets(cluster(&folder, 1).await, sale, NotFound::IsTheTruth, failover).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_death_of_a_partitions_primary_its_replica_serves_once_it_is_recovered() {
    let refused = rush_meets_failover(async |system| system.redis.kill().await.expect("it dies")).await;
    assert!(refused > 0, "while nobody served, the answer was 503");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_freezes_is_replaced_and_takes_nothing_when_it_wakes() {
    let refused = rush_meets_failover(async |system| {
        let wakes_at = Instant::now() + Duration::from_secs(12);
        system.redis.pause().await.expect("it freezes");
        recovered(system).await;
        tokio::time::sleep_until(wakes_at).await;
        system.redis.resume().expect("it wakes");
    })
    .await;
    assert!(refused > 0, "while nobody served, the answer was 503");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_over_by_hand_is_found_by_who_writes_to_the_old_primary() {
    rush_meets_failover(async |system| {
        tell::<()>(&system.other_nodes[REPLICA], &["CLUSTER", "FAILOVER"]).await;
    })
    .await;
}
