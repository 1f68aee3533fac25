//! Coupons on all nodes of a cluster, and what becomes of those on the other nodes when one dies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coupon_system::ids::{CouponId, IssuanceId, SLOTS, slot_of};
use futures::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use super::tell;
use crate::helpers::{Client, System, cluster, eventually};

const COUPONS: usize = 12;
const UNITS: u32 = 100;
const USERS: usize = 400;
/// Requests under way at once.
const AT_ONCE: usize = 200;

/// Creates coupons by the API. Returns each with the port of the node that its partition lies on.
async fn coupons(system: &System) -> BTreeMap<CouponId, u16> {
    let mut coupons = BTreeMap::new();
    let slots: redis::Value = tell(&system.redis, &["CLUSTER", "SLOTS"]).await;
    let redis::Value::Array(ranges) = slots else { panic!("ranges") };
    let ranges: Vec<(u16, u16, u16)> = ranges
        .iter()
        .map(|range| {
            let redis::Value::Array(range) = range else { panic!("a range") };
            let redis::Value::Array(node) = &range[2] else { panic!("a node") };
            let number = |value: &redis::Value| redis::from_redis_value_ref(value).expect("a number");
            (number(&range[0]), number(&range[1]), number(&node[1]))
        })
        .collect();
    for number in 0..COUPONS {
        let body = json!({"id": format!("c{number}"), "name": "n", "total": UNITS, "perUser": 1,
            "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2090-01-01T00:00:00Z"});
        let created = system.client.post("/coupons", body).await;
        assert_eq!(created.status, 201, "{created:?}");
        let id: CouponId = created.id().parse().expect("an id");
        let slot = slot_of(system.partition_of(&id).await.id().tag());
        let (.., port) =
            ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)).expect("a node");
        coupons.insert(id, *port);
    }
    let nodes: BTreeSet<_> = coupons.values().collect();
    assert_eq!(nodes.len(), 3, "they lie on all nodes: {coupons:?}");
    coupons
}

/// The node of one of the coupons that is not the one that the test asks.
fn another_node(system: &System, coupons: &BTreeMap<CouponId, u16>) -> u16 {
    *coupons.values().find(|port| **port != system.redis.port()).expect("there is another")
}

/// Lets each user request a coupon until the answer is final. Returns what was accepted, and how long the slowest took.
async fn request_all(client: &Client, users: &[String], coupon: &CouponId) -> (Vec<IssuanceId>, Duration) {
    let (mut accepted, mut slowest) = (Vec::<IssuanceId>::new(), Duration::ZERO);
    for users in users.chunks(AT_ONCE / COUPONS) {
        let answers = users.iter().map(async |user| {
            let began = Instant::now();
            loop {
                let answer = client.issue(user, coupon.as_str(), None).await;
                match (answer.status, answer.code()) {
                    (202, _) => {
                        return (Some(answer.id().parse::<IssuanceId>().expect("an id")), began.elapsed());
                    }
                    (409, "sold-out" | "already-issued") => return (None, began.elapsed()),
                    (503, _) => tokio::time::sleep(Duration::from_millis(50)).await,
                    _ => panic!("{answer:?}"),
                }
            }
        });
        for (id, took) in join_all(answers).await {
            accepted.extend(id);
            slowest = slowest.max(took);
        }
    }
    (accepted, slowest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rush_for_coupons_on_all_nodes_is_exact_for_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let system = System::builder().cluster(cluster(&folder, 0).await).start().await;
    let coupons = coupons(&system).await;
    let users = system.users("u", USERS).await;
    let _worker = system.worker();
    let rushes = coupons.keys().map(|coupon| request_all(&system.client, &users, coupon));
    for (accepted, _) in join_all(rushes).await {
        assert_eq!(accepted.len() as u32, UNITS);
    }
    for coupon in coupons.keys() {
        let stock = system.settled(coupon).await;
        assert_eq!((stock.remaining, stock.issued), (0, UNITS), "{coupon}");
        assert_eq!(system.issued_serials(coupon).await, (1..=UNITS).collect::<Vec<_>>(), "{coupon}");
    }
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_a_node_is_the_503_of_its_own_coupons_and_of_no_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut system = System::builder().cluster(cluster(&folder, 1).await).start().await;
    let coupons = coupons(&system).await;
    let users = system.users("u", 40).await;
    let dead = another_node(&system, &coupons);
    let node = system.other_nodes.iter_mut().find(|node| node.port() == dead);
    node.expect("it is one of ours").kill().await.expect("it is killed");

    let (its, others): (Vec<_>, Vec<_>) = coupons.iter().partition(|(_, port)| **port == dead);
    let refused = system.client.issue(&users[0], its[0].0.as_str(), None).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    let served = others.iter().map(|(coupon, _)| request_all(&system.client, &users, coupon));
    for (accepted, slowest) in join_all(served).await {
        assert_eq!(accepted.len(), users.len());
        assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    }
    let ready = system.client.get("/readyz").await;
    assert_eq!(ready.status, 200, "{ready:?}");

    // Its replica takes over, its partitions are rebuilt, and its coupons are served again.
    for ((coupon, _), user) in its.iter().zip(&users) {
        eventually("its coupons are served again", async || {
            // The user may ask too often meanwhile, or hold the coupon by then.
            let answer = system.client.issue(user, coupon.as_str(), None).await;
            [202, 409].contains(&answer.status).then_some(())
        })
        .await;
    }
    let _worker = system.worker();
    for coupon in coupons.keys() {
        system.settled(coupon).await;
    }
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_keeps_no_request_for_another_nodes_coupon_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut system = System::builder().cluster(cluster(&folder, 0).await).start().await;
    let coupons = coupons(&system).await;
    let users = system.users("u", 40).await;
    let frozen = another_node(&system, &coupons);
    let place = system.other_nodes.iter().position(|node| node.port() == frozen).expect("it is one of ours");
    let mut node = system.other_nodes.remove(place);
    node.pause().await.expect("it stands still");
    let (its, others): (Vec<_>, Vec<_>) = coupons.iter().partition(|(_, port)| **port == frozen);
    let waiting = its.iter().map(|(coupon, _)| request_all(&system.client, &users[..5], coupon));
    let thaw = async {
        let served = others.iter().map(|(coupon, _)| request_all(&system.client, &users, coupon));
        for (accepted, slowest) in join_all(served).await {
            assert_eq!(accepted.len(), users.len());
            assert!(slowest < Duration::from_secs(3), "{slowest:?}");
        }
        node.resume().expect("it goes on");
    };
    let (waited, ()) = tokio::join!(join_all(waiting), thaw);
    assert!(waited.iter().all(|(accepted, _)| accepted.len() <= 5));
    system.drain().await;
    system.audited_clean().await;
}

/// Whether a coupon lies on the first of three nodes.
pub(super) async fn is_on_first(system: &System, coupon: &CouponId) -> bool {
    let partition = system.partition_of(coupon).await.id();
    usize::from(slot_of(partition.tag())) < usize::from(SLOTS) / 3
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_and_comes_back_serves_its_coupons_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut system = System::builder().cluster(cluster(&folder, 0).await).partitions(6).start().await;
    let (mut there, mut elsewhere) = (Vec::new(), Vec::new());
    for number in 0..12 {
        let coupon = system.coupon(&format!("c{number}"), 5, 1).await;
        if is_on_first(&system, &coupon).await { there.push(coupon) } else { elsewhere.push(coupon) }
    }
    assert!(there.len() >= 2 && elsewhere.len() >= 2, "{there:?} {elsewhere:?}");
    let user = system.users("u", 1).await.remove(0);
    let worker = system.worker();

    system.other_nodes[0].kill().await.expect("it dies");
    eventually("the other nodes take it for dead", async || {
        let info: String = tell(&system.redis, &["CLUSTER", "INFO"]).await;
        (!info.contains("cluster_slots_fail:0\r")).then_some(())
    })
    .await;
    for coupon in &there {
        let refused = system.client.issue(&user, coupon.as_str(), None).await;
        assert_eq!((refused.status, refused.header("retry-after").is_empty()), (503, false), "{refused:?}");
    }
    for coupon in &elsewhere {
        let accepted = system.client.issue(&user, coupon.as_str(), None).await;
        assert_eq!(accepted.status, 202, "{accepted:?}");
        assert_eq!(system.client.decided(&accepted.id()).await.state(), "issued");
    }
    system.other_nodes[0].restart().await.expect("it comes back");
    for coupon in &there {
        eventually("its coupons are served again", async || {
            let answer = system.client.issue(&user, coupon.as_str(), None).await;
            // The user may ask too often meanwhile, or hold the coupon by then.
            matches!(answer.status, 202 | 409).then_some(())
        })
        .await;
    }
    for coupon in there.iter().chain(&elsewhere) {
        assert_eq!(system.settled(coupon).await.issued, 1, "{coupon}");
    }
    worker.cancel();
    system.audited_clean().await;
}
