//! The primary of a partition's slot dies, freezes or gives its place up, and its replica is promoted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coupon_system::redis::keys::certificate;
use tokio::time::Instant;

use super::tell;
use crate::helpers::{
    NotFound, RequestTally, System, accounts_hold, adopted, cluster, eventually, issued, recovered, rush,
};

const TOTAL: u32 = 400;
const USERS: usize = 600;
/// The replica of the partition's node: the third of the replicas, behind two primaries.
const REPLICA: usize = 4;

/// Lets a rush meet a failover. Everybody gets a last word, every unit goes to one user, and the accounts agree, on
/// another server than before. Returns how often the answer was 503.
async fn rush_meets(failover: impl AsyncFnOnce(&mut System)) -> u64 {
    let folder = tempfile::tempdir().expect("a folder");
    let mut system = System::builder().cluster(cluster(&folder, 1).await).start().await;
    let coupon = system.coupon("c", TOTAL, 1).await;
    let users = system.users("u", USERS).await;
    let key = certificate(system.partition().id());
    let before: String = system.command(&["HGET", &key, "run_id"]).await;
    let tally = Arc::<RequestTally>::default();
    let rush = rush(&system, users, &tally, NotFound::IsTheTruth);
    let worker = system.worker();
    issued(&system, &coupon, TOTAL / 10).await;
    failover(&mut system).await;
    eventually("another server is certified", async || {
        recovered(&system).await;
        let now: Option<String> = redis::cmd("HGET")
            .arg(&[&key, "run_id"])
            .query_async(&mut system.partition().connection())
            .await
            .ok()?;
        now.filter(|now| *now != before)
    })
    .await;
    let told = rush.await.expect("no panic");
    eventually("nothing is in flight", async || (system.queue().await == (0, 0)).then_some(())).await;
    worker.cancel();
    // A worker may have decided an entry after a rebuild had read the ledger.
    adopted(&system, &coupon).await;
    accounts_hold(&system, &coupon).await;
    assert_eq!(
        system.issued_serials(&coupon).await,
        (1..=TOTAL).collect::<Vec<_>>(),
        "every unit was issued"
    );
    let count = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed);
    let answered = told.len() as u64 + count(&tally.rejected) + count(&tally.sold_out);
    assert_eq!(answered, USERS as u64, "everybody has a last word");
    eprintln!(
        "{} accepted, {} lost, {} times 503",
        count(&tally.accepted),
        count(&tally.lost),
        count(&tally.repeated)
    );
    count(&tally.repeated)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_death_of_a_partitions_primary_its_replica_serves_once_it_is_recovered() {
    let refused = rush_meets(async |system| system.redis.kill().await.expect("it dies")).await;
    assert!(refused > 0, "while nobody served, the answer was 503");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_freezes_is_replaced_and_takes_nothing_when_it_wakes() {
    let refused = rush_meets(async |system| {
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
    rush_meets(async |system| {
        tell::<()>(&system.other_nodes[REPLICA], &["CLUSTER", "FAILOVER"]).await;
    })
    .await;
}
