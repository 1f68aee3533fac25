//! One coupon over the nodes of a cluster, and a node that dies or stands still in the end game.

use std::collections::BTreeSet;

use coupon_system::dev::servers::{ClusterOptions, RedisServer};
use coupon_system::ids::{CouponId, PartitionId, SLOTS, slot_of};
use futures::future::join_all;
use tempfile::TempDir;

use super::{adopted, create, requested, sells_out, shares_of, users_of};
use crate::helpers::{System, cluster, cluster_of, eventually};

/// Which of some nodes a partition lies on, if each has as many slots.
fn node_of(partition: PartitionId, nodes: usize) -> usize {
    usize::from(slot_of(partition.tag())) * nodes / usize::from(SLOTS)
}

async fn sells_on(system: &System, nodes: usize, per_user: u8) {
    let (total, shares) = (120, 6);
    let coupon = create(system, "hot", total, shares, per_user).await;
    let lie_on: BTreeSet<usize> =
        shares_of(system, &coupon).await.iter().map(|share| node_of(*share, nodes)).collect();
    assert_eq!(lie_on.len(), nodes, "the shares lie on every node");
    let users = system.users("u", 200 / usize::from(per_user)).await;
    let _worker = system.worker();
    let visits = users.iter().flat_map(|user| std::iter::repeat_n(user, per_user.into()));
    let accepted: usize = join_all(visits.enumerate().map(async |(visit, user)| {
        // Each visit is clicked twice, with the key of the visit.
        let key = format!("{user}-{visit}");
        let click = async || loop {
            let answer = system.client.issue(user, coupon.as_str(), Some(&key)).await;
            match answer.status {
                200 | 202 => return Some(answer.id()),
                409 if answer.code() == "sold-out" => return None,
                503 => {}
                _ => panic!("{answer:?}"),
            }
        };
        let (one, two) = tokio::join!(click(), click());
        assert!(one.is_none() || two.is_none() || one == two, "a double click takes one: {one:?} {two:?}");
        usize::from(one.is_some() || two.is_some())
    }))
    .await
    .into_iter()
    .sum();
    assert_eq!(accepted, total as usize);
    assert_eq!(system.settled(&coupon).await.issued, total);
    assert_eq!(system.issued_serials(&coupon).await, (1..=total).collect::<Vec<_>>());
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rush_for_one_coupon_over_three_nodes_is_exact() {
    let folder = tempfile::tempdir().expect("a folder");
    let system = System::builder().cluster(cluster(&folder, 0).await).partitions(64).start().await;
    sells_on(&system, 3, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rush_for_one_coupon_over_six_nodes_is_exact() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = ClusterOptions::new(folder.path().join("cluster"), 6);
    let system = System::builder().cluster(cluster_of(&options).await).partitions(64).start().await;
    sells_on(&system, 6, 3).await;
}

/// A system on three nodes with a coupon that has a share on each, and the place of the share that lies on the first node.
async fn on_three(folder: &TempDir, total: u32) -> (System, CouponId, Vec<PartitionId>) {
    let system = System::builder().cluster(cluster(folder, 0).await).partitions(64).start().await;
    let coupon = create(&system, "hot", total, 3, 1).await;
    let mut shares = shares_of(&system, &coupon).await;
    shares.sort_by_key(|share| node_of(*share, 3));
    (system, coupon, shares)
}

fn first_node(system: &mut System) -> &mut RedisServer {
    &mut system.other_nodes[0]
}

/// The answer to a request that is repeated as long as it says that something is warming up, or that too many wait.
async fn answered(system: &System, user: &str, coupon: &CouponId) -> (u16, String) {
    loop {
        let answer = system.client.issue(user, coupon.as_str(), None).await;
        let code = if answer.status == 202 { String::new() } else { answer.code().to_owned() };
        if !["warming-up", "overloaded"].contains(&code.as_str()) {
            return (answer.status, code);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_node_with_units_stands_still_nobody_is_told_sold_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut system, coupon, shares) = on_three(&folder, 9).await;
    let users = users_of(&system, &coupon, shares[1], 12).await;
    let _worker = system.worker();
    first_node(&mut system).pause().await.expect("it stands still");
    for user in &users[..6] {
        assert_eq!(answered(&system, user, &coupon).await.0, 202, "the units of the two nodes that answer");
    }
    for user in &users[6..8] {
        assert_eq!(answered(&system, user, &coupon).await, (503, "share-unreachable".to_owned()));
    }
    first_node(&mut system).resume().expect("it goes on");
    for user in &users[6..9] {
        assert!(requested(&system, user, &coupon).await, "the units of the node that is back");
    }
    assert!(!requested(&system, &users[9], &coupon).await);
    assert_eq!(system.settled(&coupon).await.issued, 9);
    adopted(&system, &coupon).await;
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_dies_with_units_on_their_way_and_comes_back_with_its_data() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut system, coupon, shares) = on_three(&folder, 60).await;
    let rush = users_of(&system, &coupon, shares[1], 30).await;
    let worker = system.worker();
    let sold = tokio::join!(
        join_all(rush.iter().map(async |user| requested(&system, user, &coupon).await)),
        async {
            let mut kill = redis::cmd("SHUTDOWN");
            kill.arg("NOSAVE").arg("NOW").arg("FORCE");
            eventually("some are sold", async || {
                (system.issued_serials(&coupon).await.len() > 10).then_some(())
            })
            .await;
            let client = redis::Client::open(system.other_nodes[0].url()).expect("a URL");
            let mut node = client.get_multiplexed_async_connection().await.expect("it answers");
            // Its data is on its disk: as a process that is killed leaves it.
            let _: redis::RedisResult<()> = kill.query_async(&mut node).await;
        }
    )
    .0;
    let sold = sold.into_iter().filter(|sold| *sold).count();
    println!("{sold} of 30 had a unit while the node was away");
    first_node(&mut system).restart().await.expect("it starts again");
    eventually("its shares sell again", async || {
        let user = users_of(&system, &coupon, shares[0], 1).await;
        (answered(&system, &user[0], &coupon).await.0 == 202).then_some(())
    })
    .await;
    worker.cancel();
    let _worker = system.worker();
    sells_out(&system, &coupon, shares[2], 60, 60 - sold - 1).await;
}
