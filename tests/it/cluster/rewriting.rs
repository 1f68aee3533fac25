//! The append-only files of several nodes: each is rewritten at a quiet time of its own node.

use std::time::{Duration, Instant};

use coupon_system::dev::servers::RedisServer;
use coupon_system::process::aof_rewriter::{AofRewriter, RewriteBounds, RewriteReason, RewriteRound};

use super::tell;
use crate::helpers::{System, cluster, eventually};

/// Whatever was appended is worth a rewrite.
const ANY_GROWTH: RewriteBounds = RewriteBounds { growth_min_bytes: 1, growth_max_bytes: 1 << 40 };
/// More than may wait at a quiet time.
const BACKLOG: usize = 1_001;
/// A node that does not answer is waited for once, and not for each of its partitions.
const SOON: Duration = Duration::from_secs(10);

/// The number of rewrites that a node has begun.
async fn rewrites(node: &RedisServer) -> u64 {
    let info: String = tell(node, &["INFO", "persistence"]).await;
    let count = info.lines().find_map(|line| line.strip_prefix("aof_rewrites:"));
    count.and_then(|count| count.trim().parse().ok()).expect("a count")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_on_one_node_keeps_no_others_file_from_being_rewritten_nor_does_a_dead_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut system = System::builder().cluster(cluster(&folder, 0).await).start().await;
    let coupon = system.coupon("rush", 5_000, 1).await;
    system.accept_all(&coupon, (0..BACKLOG).map(|number| format!("u{number}"))).await;
    let mut rewriter =
        AofRewriter::new(system.backends.partitions.clone(), system.backends.coupons.clone(), ANY_GROWTH);
    let begun = eventually("the others are asked", async || {
        let round = rewriter.round().await.expect("all answer");
        (round != RewriteRound::NotDue).then_some(round)
    })
    .await;
    assert_eq!(begun, RewriteRound::Asked(RewriteReason::Quiet));
    assert_eq!(rewrites(&system.redis).await, 0, "issuances wait there");
    let mut others = 0;
    for node in &system.other_nodes {
        others += rewrites(node).await;
    }
    assert!(others >= 1);
    system.drain().await;

    system.other_nodes[0].kill().await.expect("it dies");
    let asked = Instant::now();
    let _ = rewriter.round().await;
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
}
