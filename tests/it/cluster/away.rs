//! What can be said and done while a node is away: all of the others, and which partitions are missing.

use std::collections::BTreeSet;

use coupon_system::ids::{CouponId, IssuanceId, SLOTS, slot_of};
use serde_json::{Value, json};

use super::tell;
use crate::helpers::{System, cluster, couponctl, eventually};

/// Whether a partition lies on the last of three nodes, as partition 0 does.
fn is_on_last(tag: &str) -> bool {
    u32::from(slot_of(tag)) > u32::from(SLOTS) * 2 / 3
}

fn numbers(listed: &Value) -> BTreeSet<u64> {
    listed.as_array().expect("a list").iter().map(|number| number.as_u64().expect("a number")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_node_is_away_the_others_are_told_of_audited_and_steered_and_its_partitions_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut system = System::builder().cluster(cluster(&folder, 0).await).partitions(1).start().await;
    system.leaves_in_flight();
    let lost: BTreeSet<u64> = system
        .backends
        .partitions
        .iter()
        .filter(|partition| is_on_last(partition.id().tag()))
        .map(|partition| partition.id().number().into())
        .collect();
    assert!(lost.contains(&0) && lost.len() >= 2, "{lost:?}");
    let (mut there, mut elsewhere) = (0, Vec::<CouponId>::new());
    system.users("poor", 1).await;
    let mut accepted = Vec::<IssuanceId>::new();
    for number in 0..12 {
        let coupon = system.coupon(&format!("c{number}"), 5, 1).await;
        let answer = system.client.issue("poor0", coupon.as_str(), None).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let id: IssuanceId = answer.id().parse().expect("an id");
        match lost.contains(&id.partition().number().into()) {
            true => there += 1,
            false => {
                elsewhere.push(coupon);
                accepted.push(id);
            }
        }
    }
    assert!(there > 0 && elsewhere.len() > 2, "{there} {elsewhere:?}");
    system.poison(Some("poor0")).await;
    let worker = system.worker();
    eventually("all are set aside", async || {
        (system.client.get("/dead-letters").await.body["matched"] == there + elsewhere.len()).then_some(())
    })
    .await;
    system.poison(None).await;
    system.redis.kill().await.expect("it dies");
    eventually("the others take it for dead", async || {
        let info: String = tell(&system.other_nodes[0], &["CLUSTER", "INFO"]).await;
        (!info.contains("cluster_slots_fail:0\r")).then_some(())
    })
    .await;

    let letters = system.client.get("/dead-letters").await;
    assert_eq!((letters.status, &letters.body["matched"]), (200, &json!(elsewhere.len())), "{letters:?}");
    for path in ["/dead-letters", "/queue", "/audit"] {
        let told = system.client.get(path).await;
        assert_eq!(told.status, 200, "{path}: {told:?}");
        assert_eq!(numbers(&told.body["unavailablePartitions"]), lost, "{path}: {told:?}");
    }
    // What may lie in a partition that does not answer is not said not to be.
    let never = IssuanceId::generate(accepted[0].partition());
    assert_eq!(system.client.get(&format!("/dead-letters/{never}")).await.status, 503);

    let audited = couponctl(&system, &["audit", "--full", "--json"]).await;
    audited.assert(1, &[], &["could not be audited"]);
    let told = audited.json();
    assert_eq!(numbers(&told["unavailablePartitions"]), lost, "{told}");
    assert_eq!(told["coupons"].as_array().map(Vec::len), Some(elsewhere.len()), "{told}");

    let begun = system.client.post("/dead-letters/redrive", json!({"all": true, "reason": "mended"})).await;
    assert_eq!(begun.status, 202, "{begun:?}");
    for id in &accepted {
        assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
    }
    let path = format!("/operator-actions/{}", begun.body["id"].as_str().expect("an id"));
    let ended = eventually("the action ends", async || {
        let action = system.client.get(&path).await;
        (!action.body["endedAt"].is_null()).then_some(action)
    })
    .await;
    assert_eq!(
        (&ended.body["status"], &ended.body["progress"]["done"]),
        (&json!(503), &json!(elsewhere.len()))
    );

    // A partition that answers is recovered, though others do not.
    let uncertified = accepted[0].partition();
    let partition = system.backends.partitions.get(uncertified).expect("it is known");
    let mut gone = redis::cmd("DEL");
    gone.arg(partition.keys().certificate());
    let _: u64 = gone.query_async(&mut partition.connection()).await.expect("it is deleted");
    let recovered = couponctl(&system, &["recover", "--json"]).await;
    recovered.assert(1, &[], &["could not be recovered"]);
    assert_eq!(numbers(&recovered.json()["unavailablePartitions"]), lost, "{}", recovered.out);
    assert!(coupon_system::recovery::is_certified(partition).await.expect("an answer"));
    worker.cancel();
}
