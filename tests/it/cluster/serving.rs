//! The system on a cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::timeout;

use super::tell;
use crate::helpers::{System, accounts_hold, cluster};

/// Much longer than an announcement takes.
const PROMPTLY: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_accepted_on_a_cluster_is_decided_announced_and_polled() {
    let folder = tempfile::tempdir().expect("a folder");
    let system = System::builder().cluster(cluster(&folder, 0).await).start().await;
    assert!(system.backends.nodes.is_cluster());
    let coupon = system.coupon("c", 10, 1).await;
    let users = system.users("u", 5).await;
    let _worker = system.worker();
    for user in &users {
        let queued = system.client.issue(user, "c", None).await;
        assert_eq!(queued.status, 202, "{queued:?}");
        let decided = system.client.decided(&queued.id()).await;
        assert_eq!(decided.state(), "issued", "{decided:?}");
    }
    let stock = accounts_hold(&system, &coupon).await;
    assert_eq!(stock.issued, 5);
}

#[tokio::test]
async fn who_waits_on_a_cluster_hears_of_an_outcome_before_it_is_looked_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let system = System::builder().cluster(cluster(&folder, 0).await).start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let mut feed =
        system.partition().client().subscribe(&system.partition().outcome_channel()).await.expect("heard");
    let id = system.accepted("u0", &coupon).await;
    let _worker = system.worker();
    let heard = timeout(PROMPTLY, feed.next()).await.expect("it is announced there").expect("a message");
    let text: String = heard.get_payload().expect("a text");
    assert!(text.starts_with(&format!("{id} I 1 ")), "{text}");
    let mut told = Vec::new();
    for node in &system.other_nodes {
        let stats: redis::InfoDict = tell(node, &["CLUSTER", "INFO"]).await;
        told.push(stats.get::<u64>("cluster_stats_messages_publish_received").unwrap_or(0));
    }
    assert_eq!(told, [0, 0], "no other node was told");
    accounts_hold(&system, &coupon).await;
}

#[tokio::test]
async fn buckets_of_limits_lie_on_all_nodes_and_hold() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = ["--user-rate", "1", "--user-burst", "4"];
    let system = System::builder().cluster(cluster(&folder, 0).await).flags(&flags).start().await;
    system.coupon("c", 1, 1).await;
    let users = system.users("u", 40).await;
    let asked = users.iter().flat_map(|user| std::iter::repeat_n(user, 9));
    let answers =
        join_all(asked.map(async |user| (user, system.client.issue(user, "c", None).await.status))).await;
    let limited: BTreeSet<_> =
        answers.iter().filter(|(_, status)| *status == 429).map(|(user, _)| user).collect();
    assert_eq!(limited.len(), users.len(), "each user is limited");
    for node in system.other_nodes.iter().chain([&system.redis]) {
        let buckets: Vec<String> = tell(node, &["KEYS", "coupon:{limit*}:limit:user:*"]).await;
        assert!(buckets.len() >= 5, "{buckets:?}");
    }
    system.drain().await;
}
