//! Recovery does not wait for a part that is damaged, large, or not needed yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coupon_system::audit::FindingKind;
use coupon_system::config::Concurrency;
use coupon_system::ids::{CouponId, IssuanceId};
use coupon_system::issuance::reserve::Reserved;
use coupon_system::queue::dead;
use coupon_system::recovery;
use coupon_system::recovery::{
    CertifyOutcome, LoadOutcome, ProgressCallback, RecoveryMode, RecoveryOutcome, RecoveryStep,
    ignore_progress,
};
use coupon_system::redis::keys;
use futures::future::join_all;
use mongodb::bson::{Bson, DateTime, Document, doc};
use tokio_util::sync::CancellationToken;

use crate::helpers::{System, at, discarded, eventually, issued_to, recovered};

/// The longest outage with thousands of coupons on a busy machine. Loading them one after another takes half a minute
/// and more.
const OUTAGE_MAX: Duration = Duration::from_secs(8);

/// Reserves for the users `u0`, `u1` and so on, without the API.
async fn accept(system: &System, coupon: &CouponId, users: std::ops::Range<u32>) -> Vec<IssuanceId> {
    system.accept_all(coupon, users.map(|user| format!("u{user}"))).await
}

/// Rebuilds. Returns how many issuances are in flight then, and how many coupons are loaded.
async fn rebuild(system: &System) -> (usize, usize) {
    let keeper = system.supervisor();
    eventually("it is rebuilt", async || {
        let kept = keeper.recover(RecoveryMode::Rebuild, &ignore_progress(), &CancellationToken::new()).await;
        match kept.expect("it is rebuilt") {
            CertifyOutcome::Recovered(RecoveryOutcome::Rebuilt { survivors, coupons, .. }) => {
                Some((survivors, coupons))
            }
            // The API has noticed that nothing is certified, and holds the lease for a moment.
            _ => None,
        }
    })
    .await
}

fn coupons(system: &System) -> mongodb::Collection<Document> {
    system.backends.database.collection("coupons")
}

fn ledger(system: &System) -> mongodb::Collection<Document> {
    system.backends.database.collection("user_coupons")
}

async fn set(system: &System, coupon: &CouponId, fields: Document) {
    let changed = coupons(system).update_one(doc! {"_id": coupon.as_str()}, doc! {"$set": fields}).await;
    assert_eq!(changed.expect("an answer").modified_count, 1);
}

async fn is_loaded(system: &System, coupon: &CouponId) -> bool {
    recovery::loaded_coupons(system.partition(), &system.keys()).await.expect("a look").contains(coupon)
}

async fn all_issued(system: &System, ids: &[IssuanceId]) {
    eventually("all that was accepted is issued", async || {
        let issued = system.backends.ledger.issued_among(ids).await.expect("a look");
        (issued.len() == ids.len()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coupon_that_a_rebuild_left_out_is_loaded_together_with_what_is_in_flight_for_it() {
    let system = System::start().await;
    system.users("u", 12).await;
    let (coupon, other) = (system.coupon("c", 10, 1).await, system.coupon("other", 10, 1).await);
    let mut ids = accept(&system, &coupon, 0..8).await;
    // Two are issued in the ledger, and Redis does not know.
    let entries = system.take_entries().await;
    system.decider().decide(&system.keys(), &entries[..2]).await.expect("decided");
    set(&system, &coupon, doc! {"total": "ten"}).await;
    rebuild(&system).await;
    recovered(&system).await;
    assert!(!is_loaded(&system, &coupon).await);
    assert_eq!(system.client.issue("u9", "other", None).await.status, 202, "the others are open");
    assert_eq!(system.client.issue("u9", "c", None).await.status, 503);

    set(&system, &coupon, doc! {"total": 10_i64}).await;
    for user in ["u8", "u9"] {
        let answer = system.client.issue(user, "c", None).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        ids.push(answer.id().parse().expect("an id"));
    }
    assert_eq!(system.client.issue("u10", "c", None).await.code(), "sold-out");
    let again = system.client.issue("u7", "c", None).await;
    assert_eq!((again.status, again.id()), (202, ids[7].to_string()), "and nobody is forgotten");
    system.worker();
    all_issued(&system, &ids).await;
    assert_eq!(system.settled(&coupon).await.issued, 10);
    system.settled(&other).await;
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coupon_that_is_loaded_while_it_is_settled_counts_each_issuance_once() {
    const IN_FLIGHT: u32 = 600;
    let system = System::start().await;
    let coupon = system.coupon("c", IN_FLIGHT + 10, 1).await;
    let ids = accept(&system, &coupon, 0..IN_FLIGHT).await;
    set(&system, &coupon, doc! {"perUser": "one"}).await;
    rebuild(&system).await;
    assert!(!is_loaded(&system, &coupon).await);
    set(&system, &coupon, doc! {"perUser": 1}).await;
    // Decided issuances of a coupon that is not loaded are settled too.
    let _worker = system.worker_with(Concurrency { batches: 1, batch_size: 10 });
    let loader = system.backends.loaders().first().clone();
    let loads = join_all((0..5).map(|_| loader.load(&coupon))).await;
    assert!(loads.iter().all(|load| matches!(load, Ok(LoadOutcome::Now | LoadOutcome::Before))), "{loads:?}");
    all_issued(&system, &ids).await;
    let stock = system.settled(&coupon).await;
    assert_eq!((stock.issued, stock.remaining), (IN_FLIGHT, 10));
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coupon_that_nobody_asks_for_is_loaded_when_its_record_is_mended_and_what_was_accepted_is_decided()
{
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let ids = accept(&system, &coupon, 0..8).await;
    set(&system, &coupon, doc! {"total": "ten"}).await;
    rebuild(&system).await;
    recovered(&system).await;
    // Another issuance holds the unit of one of them, which needs a new unit.
    let late = issued_to(&coupon, "late", 3);
    system.write(&[late]).await;
    system.worker();
    // Long enough for an attempt.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!is_loaded(&system, &coupon).await);
    set(&system, &coupon, doc! {"total": 10_i64}).await;
    all_issued(&system, &ids).await;
    eventually("it is loaded", async || is_loaded(&system, &coupon).await.then_some(())).await;
    assert_eq!(system.settled(&coupon).await.issued, 9);
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gauges_show_current_coupons_that_nobody_has_asked_for_since_a_recovery() {
    let system = System::start().await;
    many(&system, 60).await;
    rebuild(&system).await;
    recovered(&system).await;
    system.worker();
    eventually("the newest fifty are shown", async || {
        let shown = system.client.request("GET", "/metrics").send().await.expect("an answer").text().await;
        let shown = shown.expect("text");
        let stocks = shown.lines().filter(|line| line.starts_with("coupon_stock_remaining_units{"));
        (stocks.filter(|line| line.ends_with(" 10")).count() == 50).then_some(())
    })
    .await;
    let loaded = recovery::loaded_coupons(system.partition(), &system.keys()).await.expect("a look");
    assert_eq!(loaded.len(), 50, "and no more of them are loaded");
}

#[tokio::test]
async fn a_coupon_whose_key_in_redis_is_gone_is_loaded_with_what_is_in_flight() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let ids = accept(&system, &coupon, 0..4).await;
    let keys = system.keys();
    let _: u64 = system.command(&["DEL", &keys.coupon(&coupon), &keys.holders(&coupon)]).await;
    let _: () = system.command(&["SET", &keys.coupon(&coupon), "no hash"]).await;
    assert_eq!(system.backends.loaders().first().load(&coupon).await.expect("a load"), LoadOutcome::Now);
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved), (1, 4));
    accept(&system, &coupon, 4..5).await;
    assert!(matches!(system.reserve("u9", &coupon).await, Reserved::SoldOut));
    assert!(matches!(system.reserve("u0", &coupon).await, Reserved::Replayed(queued) if queued.id == ids[0]));
    system.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_that_fills_redis_is_rebuilt_and_drains() {
    const IN_FLIGHT: u32 = 6_000;
    let system = System::start().await;
    let coupon = system.coupon("c", IN_FLIGHT * 2, 1).await;
    let ids = accept(&system, &coupon, 0..IN_FLIGHT).await;
    let info: String = system.command(&["INFO", "memory"]).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("it is told");
    let full: u64 = used.trim().parse::<u64>().expect("a number") - 1_000_000;
    let _: () = system.command(&["CONFIG", "SET", "maxmemory", &full.to_string()]).await;
    let refused: redis::RedisResult<()> =
        redis::cmd("SET").arg("x").arg("y").query_async(&mut system.partition().connection()).await;
    assert!(refused.is_err(), "it is full");
    assert_eq!(rebuild(&system).await, (IN_FLIGHT as usize, 1));
    // A second rebuild starts from a Redis that is as full.
    assert_eq!(rebuild(&system).await, (IN_FLIGHT as usize, 1));
    system.worker();
    all_issued(&system, &ids).await;
    system.settled(&coupon).await;
    let _: () = system.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    system.audited_clean().await;
}

/// Stops the recoverer after it has moved the first piece of the queue.
fn stops_in_the_move(stop: CancellationToken) -> ProgressCallback {
    let seen = AtomicBool::new(false);
    Arc::new(move |step: &RecoveryStep| {
        if matches!(step, RecoveryStep::Queueing { .. }) && !seen.swap(true, Ordering::Relaxed) {
            stop.cancel();
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recoverer_that_dies_in_mid_move_leaves_everything_in_flight_for_the_next_one() {
    const IN_FLIGHT: u32 = 1_600;
    let system = System::start().await;
    let coupon = system.coupon("c", IN_FLIGHT, 1).await;
    let ids = accept(&system, &coupon, 0..IN_FLIGHT).await;
    let entry = system.take_entries_of_one().await.remove(0);
    let (partition, before) = (system.partition(), system.keys());
    assert!(dead::set_aside(partition, &before, &entry.entry, entry.id, 3, "why").await.expect("done"));
    let database = &system.backends.database;
    for _ in 0..3 {
        let stop = CancellationToken::new();
        let keeper = coupon_system::recovery::RecoverySupervisor::new(
            Arc::clone(system.backends.partitions.first()),
            database.clone(),
            system.backends.durability,
            "dies".into(),
        );
        keeper
            .recover(RecoveryMode::Rebuild, &stops_in_the_move(stop.clone()), &stop)
            .await
            .expect("it is broken off");
        let held: Option<String> =
            system.command(&["HGET", &keys::certificate(partition.id()), "epoch"]).await;
        let open: Option<String> =
            system.command(&["HGET", &keys::certificate(partition.id()), "state"]).await;
        // Unless the API of this system has recovered since, no epoch has all entries.
        assert!(held.is_none() || open.as_deref() == Some("open"), "{held:?}");
    }
    recovered(&system).await;
    let in_flight: usize = system.command(&["HLEN", &system.keys().in_flight()]).await;
    assert_eq!(in_flight, ids.len());
    let letter = dead::get(system.partition(), entry.id).await.expect("a look").expect("a dead letter");
    assert_eq!((letter.attempts, letter.why.as_str()), (3, "why"));
    assert!(dead::redrive(system.partition(), entry.id).await.expect("an answer"));
    system.worker();
    all_issued(&system, &ids).await;
    system.settled(&coupon).await;
    system.audited_clean().await;
}

/// Creates the records of many coupons, and loads none.
async fn many(system: &System, count: usize) -> Vec<CouponId> {
    let time = |seconds| DateTime::from_millis(at(seconds).as_millisecond());
    let records: Vec<Document> = (0..count)
        .map(|number| {
            doc! {
                "_id": format!("c{number}"), "name": "n", "total": 10_i64, "perUser": 1, "startsAt": time(-60),
                "endsAt": time(3600), "paused": false, "archived": false, "generation": 1_i64,
                "createdAt": time(-(number as i64)), "changedAt": time(-3600),
            }
        })
        .collect();
    coupons(system).insert_many(records).await.expect("they are made");
    (0..count).map(|number| format!("c{number}").parse().expect("an id")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_coupons_that_nobody_waits_for_do_not_make_an_outage_longer() {
    let mut system = System::start().await;
    system.users("u", 1).await;
    let all = many(&system, 10_000).await;
    let started = Instant::now();
    let (survivors, loaded) = rebuild(&system).await;
    assert!(started.elapsed() < OUTAGE_MAX, "a rebuild took {:?}", started.elapsed());
    assert_eq!((survivors, loaded), (0, 0));
    recovered(&system).await;
    assert_eq!(system.client.issue("u0", "c77", None).await.status, 202, "it comes when it is asked for");
    assert!(is_loaded(&system, &all[77]).await);

    // The others are loaded too, several at a time.
    let loader = system.backends.loaders().first().clone();
    let loads = join_all(all[..1_000].iter().map(|coupon| loader.load(coupon))).await;
    let now = loads.iter().filter(|load| matches!(load, Ok(LoadOutcome::Now))).count();
    assert_eq!(now, 999);
    let epoch = system.keys().epoch();
    system.redis.kill().await.expect("it is killed");
    system.redis.restart().await.expect("it is back");
    let started = Instant::now();
    recovered(&system).await;
    assert!(started.elapsed() < OUTAGE_MAX, "a verification took {:?}", started.elapsed());
    assert_eq!(system.keys().epoch(), epoch);
    system.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_of_a_coupon_that_is_not_loaded_is_shown_alone_and_in_a_list() {
    let system = System::start().await;
    many(&system, 60).await;
    rebuild(&system).await;
    recovered(&system).await;
    // On a busy machine a read may time out before all are loaded.
    eventually("one is shown with its stock", async || {
        let one = system.client.get("/coupons/c7").await;
        assert_eq!(one.status, 200);
        (one.body["stock"]["remaining"] == 10).then_some(())
    })
    .await;
    eventually("a page is shown with all stocks", async || {
        let page = system.client.get("/coupons?limit=50").await;
        let items = page.body["items"].as_array().expect("items");
        assert_eq!(items.len(), 50);
        items.iter().all(|item| item["stock"]["remaining"] == 10).then_some(())
    })
    .await;
}

async fn issued(system: &System, coupon: &CouponId, users: std::ops::Range<u32>) {
    accept(system, coupon, users).await;
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries).await.expect("settled");
}

#[tokio::test]
async fn a_unit_stays_out_of_stock_for_each_issued_record_that_cannot_be_read() {
    let mut system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    issued(&system, &coupon, 0..6).await;
    let records = ledger(&system);
    for (serial, damage) in [
        (1_i64, doc! {"serial": "one", "unit": "one"}),
        (2, doc! {"serial": Bson::Null, "unit": Bson::Null}),
        (3, doc! {"nth": "first"}),
        (4, doc! {"userId": 4}),
    ] {
        let changed =
            records.update_one(doc! {"couponId": "c", "serial": serial}, doc! {"$set": damage}).await;
        assert_eq!(changed.expect("an answer").modified_count, 1);
    }
    rebuild(&system).await;
    recovered(&system).await;
    system.backends.loaders().first().load(&coupon).await.expect("a load");
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.issued, stock.reserved), (4, 6, 0));
    for user in ["u0", "u1", "u2"] {
        let answer = system.reserve(user, &coupon).await;
        assert!(matches!(answer, Reserved::AtLimit { .. }), "{user} holds one: {answer:?}");
    }
    let epoch = system.keys().epoch();
    system.redis.kill().await.expect("it is killed");
    system.redis.restart().await.expect("it is back");
    recovered(&system).await;
    assert_eq!(system.keys().epoch(), epoch, "the accounts agree");

    let report = system.audited().await;
    let findings: Vec<_> = report.findings().collect();
    assert_eq!(findings.len(), 4, "{findings:#?}");
    for finding in findings {
        assert_eq!(finding.kind, FindingKind::RecordUnreadable, "no unit is leaked, so none is given back");
        assert_eq!(finding.coupon.as_ref(), Some(&coupon));
        assert_eq!(finding.issuances.len(), 1, "{finding}");
    }
}

#[tokio::test]
async fn a_decision_that_this_version_cannot_read_keeps_neither_verification_nor_rebuild_from_opening() {
    let mut system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    let ids = accept(&system, &coupon, 0..3).await;
    let entry = system.take_entries().await.remove(0);
    system.write(&[discarded(&entry)]).await;
    ledger(&system)
        .update_one(doc! {}, doc! {"$set": {"reason": "of-a-later-version"}})
        .await
        .expect("changed");
    let epoch = system.keys().epoch();
    system.redis.kill().await.expect("it is killed");
    system.redis.restart().await.expect("it is back");
    recovered(&system).await;
    assert_eq!(system.keys().epoch(), epoch, "the data is what was left there");
    let report = system.audited().await;
    let named: Vec<_> = report.findings().map(|finding| (finding.kind, finding.issuances.clone())).collect();
    assert_eq!(named, [(FindingKind::RecordUnreadable, vec![ids[0]])]);
    assert_eq!(rebuild(&system).await, (2, 1), "what is decided is not in flight any more");
    recovered(&system).await;
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved), (8, 2));
}

#[tokio::test]
async fn damage_in_the_queue_is_taken_from_the_stream_or_kept_aside_and_the_rest_is_rebuilt() {
    let mut system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    let ids = accept(&system, &coupon, 0..5).await;
    let entries = system.take_entries_of_one().await;
    let (partition, keys) = (system.partition(), system.keys());
    for entry in &entries[..2] {
        assert!(dead::set_aside(partition, &keys, &entry.entry, entry.id, 3, "why").await.expect("done"));
    }
    let mut damage = redis::pipe();
    damage.hset(keys.in_flight(), ids[4].as_bytes().as_slice(), "no value").ignore();
    damage.hset(keys.in_flight(), "no id", "no value either").ignore();
    damage.hset(keys.dead(), ids[1].as_bytes().as_slice(), "?").ignore();
    damage.sadd(keys.loaded(), "a b").ignore();
    damage.set(keys::damaged(partition.id()), "no hash").ignore();
    damage.query_async::<()>(&mut partition.connection()).await.expect("it is damaged");
    assert_eq!(
        recovery::loaded_coupons(partition, &keys).await.expect("a look"),
        std::slice::from_ref(&coupon)
    );
    system.redis.kill().await.expect("it is killed");
    system.redis.restart().await.expect("it is back");
    recovered(&system).await;
    let aside: Vec<(Vec<u8>, Vec<u8>)> =
        system.command(&["HGETALL", &keys::damaged(system.partition().id())]).await;
    assert_eq!(aside, [(b"no id".to_vec(), b"no value either".to_vec())]);
    for id in &ids[..2] {
        let letter = dead::get(system.partition(), *id).await.expect("a look");
        assert!(letter.is_some(), "it is a dead letter still");
    }
    system.worker();
    all_issued(&system, &ids[2..]).await;
}

#[tokio::test]
async fn a_queue_whose_keys_are_of_a_wrong_type_does_not_keep_the_coupons_closed() {
    let mut system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    issued(&system, &coupon, 0..2).await;
    let keys = system.keys();
    let mut damage = redis::pipe();
    damage.set(keys.in_flight(), "no hash").set(keys.dead(), "no hash").ignore();
    damage.set(keys.holders(&coupon), "no hash").ignore();
    damage.query_async::<()>(&mut system.partition().connection()).await.expect("it is damaged");
    system.redis.kill().await.expect("it is killed");
    system.redis.restart().await.expect("it is back");
    recovered(&system).await;
    system.backends.loaders().first().load(&coupon).await.expect("a load");
    assert!(matches!(system.reserve("u0", &coupon).await, Reserved::AtLimit { .. }));
    accept(&system, &coupon, 5..6).await;
    let aside: Vec<String> =
        system.command(&["KEYS", &format!("{}:*", keys::damaged(system.partition().id()))]).await;
    assert_eq!(aside.len(), 2, "{aside:?}");
}
