//! Coupons on all nodes of a cluster, and what becomes of those on the other nodes when one dies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coupon_system::dev::servers::{RedisServer, slot_owners};
use coupon_system::ids::{CouponId, IssuanceId, slot_of};
use futures::future::join_all;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use super::tell;
use crate::helpers::{Client, System, cluster, eventually};

const COUPONS: usize = 12;
const UNITS: u32 = 100;
const USERS: usize = 400;
/// Requests under way at once.
const AT_ONCE: usize = 200;

/// A system on a cluster, with coupons on all nodes.
struct SpreadSystem {
    system: System,
    /// Each coupon, with the port of the node that its partition lies on.
    coupons: BTreeMap<CouponId, u16>,
    _folder: TempDir,
}

impl SpreadSystem {
    /// Starts three primaries, each with so many replicas, and creates coupons by the API.
    async fn start(replicas: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let system = System::builder().cluster(cluster(&folder, replicas).await).start().await;
        let mut coupons = BTreeMap::new();
        let owners = slot_owners(&system.redis).await.expect("it says who serves what");
        for number in 0..COUPONS {
            let body = json!({"id": format!("c{number}"), "name": "n", "total": UNITS, "perUser": 1,
                "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2090-01-01T00:00:00Z"});
            let created = system.client.post("/coupons", body).await;
            assert_eq!(created.status, 201, "{created:?}");
            let id: CouponId = created.id().parse().expect("an id");
            let slot = slot_of(system.partition_of(&id).await.id().tag());
            let owner = owners.iter().find(|range| range.slots.contains(&slot)).expect("a node");
            coupons.insert(id, owner.port);
        }
        let nodes: BTreeSet<_> = coupons.values().collect();
        assert_eq!(nodes.len(), 3, "they lie on all nodes: {coupons:?}");
        SpreadSystem { system, coupons, _folder: folder }
    }

    /// Takes a node that has coupons, and is not the one that the test asks, out of the system. Returns it with its
    /// coupons and those of the others.
    fn take_node(&mut self) -> (RedisServer, Vec<CouponId>, Vec<CouponId>) {
        let has_coupons = |node: &RedisServer| self.coupons.values().any(|port| *port == node.port());
        let place = self.system.other_nodes.iter().position(has_coupons).expect("there is another");
        let node = self.system.other_nodes.remove(place);
        let (its, others): (Vec<_>, Vec<_>) =
            self.coupons.clone().into_iter().partition(|(_, port)| *port == node.port());
        let ids = |coupons: Vec<(CouponId, u16)>| coupons.into_iter().map(|(coupon, _)| coupon).collect();
        (node, ids(its), ids(others))
    }

    /// Waits until requests for these coupons are accepted.
    async fn served_again(&self, coupons: &[CouponId], users: &[String]) {
        for (coupon, user) in coupons.iter().zip(users) {
            eventually("its coupons are served again", async || {
                // The user may ask too often meanwhile, or hold the coupon by then.
                let answer = self.system.client.issue(user, coupon.as_str(), None).await;
                [202, 409].contains(&answer.status).then_some(())
            })
            .await;
        }
    }

    /// Waits until everything is settled. Asserts that the accounts agree.
    async fn ends_well(&self) {
        for coupon in self.coupons.keys() {
            self.system.settled(coupon).await;
        }
        self.system.audited_clean().await;
    }

    /// Asserts that each of the users is accepted for each of the coupons, promptly.
    async fn serves_promptly(&self, coupons: &[CouponId], users: &[String]) {
        let served = coupons.iter().map(|coupon| request_all(&self.system.client, users, coupon));
        for (accepted, slowest) in join_all(served).await {
            assert_eq!(accepted.len(), users.len());
            assert!(slowest < Duration::from_secs(3), "{slowest:?}");
        }
    }
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
    let spread = SpreadSystem::start(0).await;
    let (system, coupons) = (&spread.system, &spread.coupons);
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
    let mut spread = SpreadSystem::start(1).await;
    let users = spread.system.users("u", 40).await;
    let (mut node, its, others) = spread.take_node();
    node.kill().await.expect("it is killed");

    let refused = spread.system.client.issue(&users[0], its[0].as_str(), None).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    spread.serves_promptly(&others, &users).await;
    let ready = spread.system.client.get("/readyz").await;
    assert_eq!(ready.status, 200, "{ready:?}");

    // Its replica takes over, its partitions are rebuilt, and its coupons are served again.
    spread.served_again(&its, &users).await;
    let _worker = spread.system.worker();
    spread.ends_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_keeps_no_request_for_another_nodes_coupon_waiting() {
    let mut spread = SpreadSystem::start(0).await;
    let users = spread.system.users("u", 40).await;
    let (mut node, its, others) = spread.take_node();
    node.pause().await.expect("it stands still");
    let waiting = its.iter().map(|coupon| request_all(&spread.system.client, &users[..5], coupon));
    let thaw = async {
        spread.serves_promptly(&others, &users).await;
        node.resume().expect("it goes on");
    };
    let (waited, ()) = tokio::join!(join_all(waiting), thaw);
    assert!(waited.iter().all(|(accepted, _)| accepted.len() <= 5));
    spread.system.drain().await;
    spread.system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_and_comes_back_serves_its_coupons_again() {
    let mut spread = SpreadSystem::start(0).await;
    let users = spread.system.users("u", COUPONS).await;
    let worker = spread.system.worker();
    let (mut node, its, others) = spread.take_node();
    node.kill().await.expect("it dies");
    let client = &spread.system.client;
    eventually("the other nodes take it for dead", async || {
        let info: String = tell(&spread.system.redis, &["CLUSTER", "INFO"]).await;
        (!info.contains("cluster_slots_fail:0\r")).then_some(())
    })
    .await;
    for coupon in &its {
        let refused = client.issue(&users[0], coupon.as_str(), None).await;
        assert_eq!((refused.status, refused.header("retry-after").is_empty()), (503, false), "{refused:?}");
    }
    for coupon in &others {
        let accepted = client.issue(&users[0], coupon.as_str(), None).await;
        assert_eq!(accepted.status, 202, "{accepted:?}");
        assert_eq!(client.decided(&accepted.id()).await.state(), "issued");
    }
    node.restart().await.expect("it comes back");
    spread.served_again(&its, &users).await;
    spread.ends_well().await;
    for coupon in spread.coupons.keys() {
        assert_eq!(spread.system.stock(coupon).await.issued, 1, "{coupon}");
    }
    worker.cancel();
}
