//! Ended coupons leave Redis, and the ledger answers for them; no issuance of them is forgotten.

use std::time::Duration;

use coupon_system::audit::FindingKind;
use coupon_system::coupon::{CouponChange, CouponChangeOutcome, Restock, RestockAmount};
use coupon_system::ids::CouponId;
use coupon_system::queue::dead;
use coupon_system::recovery;
use coupon_system::redis::keys::EpochKeys;
use coupon_system::worker::BatchDecisions;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::helpers::{System, at, eventually, issued_to};

async fn retire(system: &System) -> Vec<CouponId> {
    recovery::retire(system.partition(), &system.backends.coupons, Duration::ZERO).await.expect("a look")
}

async fn is_loaded(system: &System, coupon: &CouponId) -> bool {
    let loaded = recovery::loaded_coupons(system.partition(), &system.keys()).await.expect("a look");
    loaded.contains(coupon)
}

#[tokio::test]
async fn a_coupon_that_is_over_is_retired_and_the_ledger_answers_for_it() {
    let system = System::start().await;
    system.users("u", 4).await;
    let coupon = system.coupon("c", 3, 1).await;
    system.coupon("current", 3, 1).await;
    let issued = system.client.issue("u0", "c", Some("k0")).await.id();
    let rejected = system.client.issue("u1", "c", Some("k1")).await.id();
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries[..1]).await.expect("it is issued");
    let entry = &entries[1];
    let (partition, keys) = (system.partition(), system.keys());
    assert!(dead::set_aside(partition, &keys, &entry.entry, entry.id, 3, "why").await.expect("set aside"));
    dead::discard(partition, &system.backends.ledger, entry.id).await.expect("discarded");
    assert_eq!(retire(&system).await, [], "it can still be asked for");

    system.end(&coupon).await;
    assert_eq!(retire(&system).await, std::slice::from_ref(&coupon));
    assert!(!is_loaded(&system, &coupon).await);
    assert_eq!(kept_keys(&system, &keys, &coupon).await, Vec::<String>::new());
    assert_eq!(retire(&system).await, [], "once");

    let again = system.client.issue("u0", "c", Some("k0")).await;
    assert_eq!((again.status, again.id()), (200, issued.clone()));
    let again = system.client.issue("u1", "c", Some("k1")).await;
    assert_eq!((again.status, again.code()), (409, "discarded"));
    assert_eq!(system.client.issue("u0", "c", None).await.code(), "already-issued");
    assert_eq!(system.client.issue("u2", "c", None).await.code(), "ended");
    assert_eq!(system.client.get(&format!("/issuances/{issued}")).await.state(), "issued");
    assert_eq!(system.client.get(&format!("/issuances/{rejected}")).await.state(), "rejected");
    let shown = system.client.get("/coupons/c").await.body["stock"].clone();
    assert_eq!(shown, json!({"total": 3, "remaining": 2, "reserved": 0, "issued": 1}));
    assert!(!is_loaded(&system, &coupon).await, "nobody's question brings it back");
}

async fn kept_keys(system: &System, keys: &EpochKeys, coupon: &CouponId) -> Vec<String> {
    let all: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut system.partition().connection())
        .await
        .expect("the keys");
    let mine = [keys.coupon(coupon), keys.holders(coupon), keys.free(coupon)];
    all.into_iter().filter(|key| mine.contains(key)).collect()
}

#[tokio::test]
async fn a_coupon_with_something_in_flight_stays_until_it_is_decided() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3, 1).await;
    let id = system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    system.end(&coupon).await;
    assert_eq!(retire(&system).await, []);
    // As after a rebuild that found the unit taken: by the counts alone, nothing would be reserved.
    let keys = system.keys();
    let value: String = redis::cmd("HGET")
        .arg(keys.in_flight())
        .arg(id.as_bytes().as_slice())
        .query_async(&mut system.partition().connection())
        .await
        .expect("it is in flight");
    let without = value.replacen(" 1 ", " 0 ", 1);
    let mut unit_lost = redis::pipe();
    unit_lost.hset(keys.in_flight(), id.as_bytes().as_slice(), without).ignore();
    unit_lost.sadd(keys.free(&coupon), 1).ignore();
    unit_lost.query_async::<()>(&mut system.partition().connection()).await.expect("it is lost");
    assert_eq!(retire(&system).await, [], "the in-flight hash says that somebody waits");

    let mut entry = entries[0].clone();
    entry.unit = None;
    system.decider().process(&keys, &[entry]).await.expect("it gets another unit");
    assert_eq!(retire(&system).await, [coupon]);
}

#[tokio::test]
async fn a_value_in_flight_that_cannot_be_read_keeps_no_other_coupon_from_being_retired() {
    let system = System::start().await;
    system.leaves_in_flight();
    let (damaged, over) = (system.coupon("damaged", 3, 1).await, system.coupon("over", 3, 1).await);
    let id = system.accepted("u0", &damaged).await;
    let keys = system.keys();
    let mut damage = redis::cmd("HSET");
    damage.arg(keys.in_flight()).arg(id.as_bytes().as_slice()).arg("no value");
    damage.query_async::<()>(&mut system.partition().connection()).await.expect("it is damaged");
    system.end(&damaged).await;
    system.end(&over).await;
    assert_eq!(retire(&system).await, [over]);
    assert!(is_loaded(&system, &damaged).await);
}

#[tokio::test]
async fn a_loader_that_slept_cannot_bring_back_what_was_before_the_retirement() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3, 1).await;
    let keys = system.keys();
    // What a loader would have computed before any unit was issued.
    let retired_then = 0;
    system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    let decided: BatchDecisions = system.decider().decide(&keys, &entries).await.expect("decided");
    assert_eq!(decided.settlements.len(), 1);
    system.decider().process(&keys, &entries).await.expect("settled");
    system.end(&coupon).await;
    assert_eq!(retire(&system).await, std::slice::from_ref(&coupon));

    let load = include_str!("../../src/recovery/load.lua")
        .replace("--@certificate\n", include_str!("../../src/redis/lua/certificate.lua"));
    let (holders, free) = keys.staging("slept");
    let answer: Vec<String> = redis::Script::new(&load)
        .key(keys.certificate())
        .key(keys.counters())
        .key(keys.loaded())
        .key(keys.coupon(&coupon))
        .key(keys.holders(&coupon))
        .key(keys.free(&coupon))
        .key(holders)
        .key(free)
        .arg(system.partition().credential(&keys))
        .arg("0")
        .arg("0")
        .arg("0")
        .arg(retired_then)
        .arg("id")
        .arg("c")
        .arg("total")
        .arg("3")
        .invoke_async(&mut system.partition().connection())
        .await
        .expect("an answer");
    assert_eq!(answer, ["ok", "retired"]);
    assert!(!is_loaded(&system, &coupon).await);
}

#[tokio::test]
async fn a_retired_coupon_whose_end_is_put_off_can_be_had_again() {
    let system = System::start().await;
    system.users("u", 2).await;
    let coupon = system.coupon("c", 2, 1).await;
    system.worker();
    let id = system.client.issue("u0", "c", None).await.id();
    system.client.decided(&id).await;
    system.settled(&coupon).await;
    system.end(&coupon).await;
    assert_eq!(retire(&system).await, std::slice::from_ref(&coupon));
    let longer = CouponChange::Edit { name: None, starts_at: None, ends_at: Some(at(60)) };
    let changed = system.backends.coupons.change(&coupon, &longer, None).await.expect("it is changed");
    assert!(matches!(changed, CouponChangeOutcome::Now(_)));
    assert_eq!(system.client.issue("u0", "c", None).await.code(), "already-issued");
    let id = system.client.issue("u1", "c", None).await.id();
    assert_eq!(system.client.decided(&id).await.body["serial"], 2);
    assert!(is_loaded(&system, &coupon).await);
}

#[tokio::test]
async fn what_was_issued_of_a_retired_coupon_is_kept_with_it_until_its_record_changes() {
    let system = System::start().await;
    system.users("u", 2).await;
    let coupon = system.coupon("c", 3, 1).await;
    system.worker();
    for user in ["u0", "u1"] {
        system.client.decided(&system.client.issue(user, "c", None).await.id()).await;
    }
    system.settled(&coupon).await;
    let coupons = &system.backends.coupons;
    let kept = async || {
        let record = coupons.get(&coupon).await.expect("a look").expect("a record");
        coupons.final_counts(&[&record]).await.expect("a look").remove(&coupon)
    };
    assert_eq!(kept().await, None);
    system.end(&coupon).await;
    assert_eq!(retire(&system).await, std::slice::from_ref(&coupon));
    assert_eq!(kept().await, Some(2));

    let restock = CouponChange::Restock(Restock { units: RestockAmount::Add(1), key: None });
    let changed = coupons.change(&coupon, &restock, None).await.expect("it is changed");
    assert!(matches!(changed, CouponChangeOutcome::Now(_)));
    assert_eq!(kept().await, None, "more may be issued of it by now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_written_after_the_final_count_was_kept_is_counted_by_the_next_audit() {
    let system = System::start().await;
    let mut coupons = Vec::new();
    for id in ["watched", "repaired"] {
        let coupon = system.coupon(id, 5, 1).await;
        system.accepted("u0", &coupon).await;
        let entries = system.take_entries().await;
        system.decider().process(&system.keys(), &entries).await.expect("it is issued");
        system.end(&coupon).await;
        assert_eq!(retire(&system).await, std::slice::from_ref(&coupon));
        coupons.push(coupon);
    }
    let late = async |coupon: &CouponId| {
        let late = issued_to(coupon, "late", 4);
        system.write(&[late]).await;
    };
    let kept = async |coupon: &CouponId| {
        let record = system.backends.coupons.get(coupon).await.expect("a look").expect("a record");
        system.backends.coupons.final_counts(&[&record]).await.expect("a look").remove(coupon)
    };
    late(&coupons[1]).await;
    assert_eq!(kept(&coupons[1]).await, Some(1));
    let record = system.backends.coupons.get(&coupons[1]).await.expect("a look").expect("a record");
    let found: Vec<_> = system.audited().await.findings().map(|finding| finding.kind).collect();
    assert_eq!(found, [FindingKind::FinalCountStale]);
    let report = system.auditor().repair(&[record], |_| {}).await.expect("an audit");
    assert_eq!(
        report.repaired.iter().map(|finding| finding.kind).collect::<Vec<_>>(),
        [FindingKind::FinalCountStale]
    );
    assert_eq!(kept(&coupons[1]).await, Some(2));
    system.audited_clean().await;

    late(&coupons[0]).await;
    let stop = CancellationToken::new();
    let auditing = system.keep_auditing(Duration::from_millis(200), &stop);
    eventually("it is counted", async || (kept(&coupons[0]).await == Some(2)).then_some(())).await;
    stop.cancel();
    auditing.await.expect("it ends");
    system.audited_clean().await;
    for coupon in &coupons {
        assert!(!is_loaded(&system, coupon).await);
    }
}
