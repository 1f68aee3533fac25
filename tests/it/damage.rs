//! Damage to one thing, mistakes of an operator and wrong clocks must not affect everything else.

use std::time::{Duration, Instant};

use clap::Parser;
use coupon_system::config::ApiCommand;
use coupon_system::config::Concurrency;
use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::issuance::reserve::{QueueEntries, Request, Reserved, reserve};
use coupon_system::process;
use coupon_system::queue::{claim, dead};
use coupon_system::recovery::{CertifyOutcome, RecoveryMode, ignore_progress, is_certified};
use coupon_system::service::ServiceStore;
use futures::future::join_all;
use mongodb::bson::{Document, doc};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::helpers::{System, at, database, issued_to};

const SOON: Duration = Duration::from_secs(12);

/// Whether the condition holds soon.
async fn soon(mut look: impl AsyncFnMut() -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < SOON {
        if look().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

async fn is_back(system: &System) -> bool {
    soon(async || matches!(is_certified(system.partition()).await, Ok(true))).await
}

async fn restarted(system: &mut System) -> bool {
    system.redis.kill().await.expect("it is killed");
    system.redis.restart().await.expect("it is back");
    is_back(system).await
}

async fn damage_coupon(system: &System, id: &str) {
    let coupons = system.backends.database.collection::<Document>("coupons");
    let changed = coupons.update_one(doc! {"_id": id}, doc! {"$set": {"total": "ten"}}).await;
    assert_eq!(changed.expect("an answer").modified_count, 1);
}

async fn late(system: &System, coupon: &str, user: &str, serial: u32) -> IssuanceId {
    let decision = issued_to(&coupon.parse().expect("an id"), user, serial);
    system.write(std::slice::from_ref(&decision)).await;
    decision.id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_a_database_that_lost_its_redis_to_another_do_not_touch_it_any_more() {
    let old = System::builder().flags(&["--require-registered-users=false"]).start().await;
    old.leaves_in_flight();
    let coupon = old.coupon("c", 10, 1).await;
    let _worker = old.worker();
    old.client.decided(&old.client.issue("u0", "c", None).await.id()).await;

    // A deployment with another database takes the Redis over.
    let url = old.redis.url();
    let name = database();
    let args = [
        "x",
        "--listen",
        "127.0.0.1:0",
        "--redis-url",
        &url,
        "--mongodb-uri",
        &old.mongodb_uri,
        "--mongodb-database",
        &name,
    ];
    let command = ApiCommand::parse_from(args);
    let new = process::connect_to_any(&command.redis, &command.mongodb).await.expect("they fit");
    let kept = new
        .recovery_supervisors()
        .next()
        .expect("that of partition 0")
        .recover(RecoveryMode::Rebuild, &ignore_progress(), &CancellationToken::new())
        .await;
    assert!(matches!(kept, Ok(CertifyOutcome::Recovered(_))), "{kept:?}");
    let mut record = old.backends.coupons.get(&coupon).await.expect("a look").expect("a record");
    record.created_at = at(0);
    new.coupons.insert(&record).await.expect("made");
    new.loaders().first().load(&coupon).await.expect("loaded");

    // A user requests from the new deployment; the old worker must not decide the request.
    let id = IssuanceId::generate(PartitionId::ONE);
    let request =
        Request { id, coupon: coupon.clone(), user: "u1".parse().expect("an id"), key: None, trace: None };
    let answers = reserve(new.partitions.first(), &[request], 1000, QueueEntries::OfOne).await;
    assert!(matches!(answers.as_deref(), Ok([Reserved::Accepted(_)])), "{answers:?}");
    let stolen =
        soon(async || old.backends.ledger.decisions(&[id]).await.expect("a look").contains_key(&id)).await;
    let answer = old.client.issue("u5", "c", None).await;
    assert!(!stolen, "the old worker decided in the old ledger what the new one had accepted");
    assert_eq!(answer.status, 503, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuances_of_a_coupon_whose_record_is_damaged_do_not_keep_others_waiting() {
    let system = System::start().await;
    system.leaves_in_flight();
    let bad = system.coupon("bad", 100, 1).await;
    let good = system.coupon("good", 100, 1).await;
    for number in 0..20 {
        system.accepted(&format!("b{number}"), &bad).await;
    }
    damage_coupon(&system, "bad").await;
    let id = system.accepted("g0", &good).await;
    let _worker = system.worker_with(Concurrency { batches: 2, batch_size: 5 });
    let decided =
        soon(async || system.backends.ledger.decisions(&[id]).await.expect("a look").contains_key(&id)).await;
    assert!(decided, "every hand holds on to what it cannot decide");
}

#[tokio::test]
async fn a_damaged_coupon_record_does_not_keep_the_others_closed() {
    let system = System::start().await;
    system.leaves_in_flight();
    system.coupon("bad", 100, 1).await;
    let good = system.coupon("good", 100, 1).await;
    damage_coupon(&system, "bad").await;
    let _: () = system.command(&["FLUSHALL"]).await;
    assert!(is_back(&system).await, "one damaged coupon record stops every recovery");
    system.accepted("g0", &good).await;
}

#[tokio::test]
async fn a_damaged_ledger_record_does_not_keep_the_others_closed() {
    let system = System::start().await;
    system.leaves_in_flight();
    let bad = system.coupon("bad", 100, 1).await;
    let good = system.coupon("good", 100, 1).await;
    late(&system, bad.as_str(), "u0", 1).await;
    let ledger = system.backends.database.collection::<Document>("user_coupons");
    ledger
        .update_one(doc! {"couponId": "bad"}, doc! {"$set": {"serial": -1_i64, "unit": -1_i64}})
        .await
        .expect("changed");
    let _: () = system.command(&["FLUSHALL"]).await;
    assert!(is_back(&system).await, "one damaged ledger record stops every recovery");
    system.accepted("g0", &good).await;
}

#[tokio::test]
async fn redis_data_that_cannot_be_read_is_rebuilt() {
    let mut system = System::start().await;
    let coupon = system.coupon("c", 100, 1).await;
    let _: i64 = system.command(&["HSET", &system.keys().coupon(&coupon), "settled", "abc"]).await;
    assert!(restarted(&mut system).await, "an unreadable count stops every recovery");
}

#[tokio::test]
async fn a_member_of_the_loaded_coupons_that_is_none_is_rebuilt() {
    let mut system = System::start().await;
    system.coupon("c", 100, 1).await;
    let _: i64 = system.command(&["SADD", &system.keys().loaded(), "a b"]).await;
    assert!(restarted(&mut system).await, "an unreadable member stops every recovery");
}

#[tokio::test]
async fn a_rebuild_fits_where_the_data_has_fitted() {
    let system = System::start().await;
    let coupon = system.coupon("c", 100_000, 1).await;
    system.write_issued(&coupon, "u", 1..=40_000).await;
    let keeper = system.supervisor();
    let stop = CancellationToken::new();
    keeper.recover(RecoveryMode::Rebuild, &ignore_progress(), &stop).await.expect("rebuilt once");
    system.accepted("w", &coupon).await;
    // Redis frees the earlier data in the background.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let info: String = system.command(&["INFO", "memory"]).await;
    let used: u64 = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"))
        .expect("it")
        .trim()
        .parse()
        .expect("n");
    let _: () = system.command(&["CONFIG", "SET", "maxmemory", &(used + 1_500_000).to_string()]).await;
    system.accepted("x", &coupon).await;
    let done = soon(async || {
        let kept = keeper.recover(RecoveryMode::Rebuild, &ignore_progress(), &stop).await;
        matches!(kept, Ok(CertifyOutcome::Recovered(_)))
    })
    .await;
    assert!(done, "memory that is enough for the data is not enough for a rebuild");
    system.drain().await;
}

#[tokio::test]
async fn a_coupon_that_cannot_be_audited_does_not_keep_the_others_from_it() {
    let system = System::start().await;
    system.coupon("a", 10, 1).await;
    let b = system.coupon("b", 10, 1).await;
    damage_coupon(&system, "a").await;
    late(&system, "b", "u0", 3).await;
    let stop = CancellationToken::new();
    let watching = system.keep_auditing(Duration::from_millis(300), &stop);
    let adopted = soon(async || system.stock(&b).await.issued == 1).await;
    stop.cancel();
    watching.await.expect("it ends");
    assert!(adopted, "the round ends at the first coupon that cannot be read");
}

#[tokio::test]
async fn entries_of_a_worker_that_died_before_the_clock_was_put_back_are_claimed() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    system.accepted("u0", &coupon).await;
    assert_eq!(system.take_entries().await.len(), 1);
    let keys = system.keys();
    let consumers: redis::Value = system.command(&["XINFO", "CONSUMERS", &keys.stream(), "workers"]).await;
    let text = format!("{consumers:?}");
    let start = text.find("test-").expect("the consumer");
    let name: String = text[start..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    // The process lived an hour "later".
    let beat = format!("{} pid=1", at(3600).as_millisecond());
    let _: i64 = system.command(&["HSET", &keys.workers(), &name, &beat]).await;
    let claimed = claim(system.partition(), &keys, "other", 10).await.expect("an answer");
    assert_eq!(claimed.count(), 1, "its entries would wait for an hour");
}

#[tokio::test]
async fn a_pause_of_the_service_while_redis_was_away_holds_when_it_is_back() {
    let mut system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let services = ServiceStore::new(&system.backends.database);
    // No API runs that would reconcile, as in the time before the next reconciliation.
    system.stop().await;
    system.redis.kill().await.expect("it is killed");
    services.set_paused(true).await.expect("paused");
    system.redis.restart().await.expect("it is back");
    let keeper = system.supervisor();
    assert!(soon(async || matches!(keeper.ensure().await, Ok(true))).await);
    let answer = system.reserve("u0", &coupon).await;
    assert!(format!("{answer:?}").contains("Paused"), "{answer:?}");
}

#[tokio::test]
async fn a_dead_letter_does_not_hide_a_late_insert_from_the_bracket() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    system.accepted("u0", &coupon).await;
    let entry = system.take_entries().await.remove(0);
    let (partition, keys) = (system.partition(), system.keys());
    assert!(dead::set_aside(partition, &keys, &entry.entry, entry.id, 3, "why").await.expect("done"));
    let bracket = system.auditor().bracket(&coupon).await.expect("a look").expect("loaded");
    assert!(bracket.holds(), "a dead letter alone is no damage");
    late(&system, "c", "u1", 5).await;
    let bracket = system.auditor().bracket(&coupon).await.expect("a look").expect("loaded");
    assert!(!bracket.holds(), "{bracket:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_look_at_once_only_those_at_a_damaged_coupon_are_not_told() {
    const EACH: usize = 50;
    let system = System::start().await;
    for (id, total) in [("bad", 100), ("good", 100), ("other", 7)] {
        system.coupon(id, total, 1).await;
    }
    damage_coupon(&system, "bad").await;
    let before = system.scripts_run().await;
    let looks = ["bad", "good", "other", "none"].iter().cycle().take(4 * EACH);
    let answers =
        join_all(looks.map(async |id| (*id, system.client.get(&format!("/coupons/{id}")).await))).await;
    let read = system.scripts_run().await - before;
    for (id, answer) in answers {
        match id {
            "bad" => assert_eq!(answer.status, 503, "{answer:?}"),
            "none" => assert_eq!((answer.status, answer.code()), (404, "coupon-not-found")),
            _ => {
                let total = if id == "good" { 100 } else { 7 };
                assert_eq!((&answer.body["id"], &answer.body["stock"]["total"]), (&json!(id), &json!(total)));
            }
        }
    }
    // Otherwise each issuance with a record would cost a script call of its own.
    assert!(read < EACH as u64, "{read} scripts for {} looks", 4 * EACH);
}
