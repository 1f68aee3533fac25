//! Damage to one entry, record or coupon stays with it: workers decide the others as if it did not exist, and it is
//! named.

use std::time::{Duration, Instant};

use coupon_system::audit::FindingKind;
use coupon_system::config::Concurrency;
use coupon_system::ids::{CouponId, IssuanceId, PartitionId};
use coupon_system::issuance::reserve::{QueueEntries, Request, reserve};
use coupon_system::issuance::{Outcome, Reason};
use coupon_system::queue;
use coupon_system::queue::dead::DeadLetter;
use coupon_system::queue::{dead, figures};
use coupon_system::worker::{ATTEMPTS_MAX, BatchDecisions, BatchOutcome, Unsettled};
use mongodb::bson::{Document, Uuid, doc};

use crate::helpers::{NO_BACKLOG_MAX, System, eventually, native, obedient_mongodb, request};

/// Accepted requests for a coupon, each of another user.
async fn accept_many(system: &System, coupon: &CouponId, prefix: &str, count: usize) {
    system.accept_all(coupon, (0..count).map(|number| format!("{prefix}{number}"))).await;
}

async fn dead_letters(system: &System) -> u64 {
    figures(system.partition()).await.expect("the figures").dead
}

fn uuid(id: IssuanceId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

async fn dead_letter(system: &System, id: IssuanceId) -> DeadLetter {
    eventually("it is a dead letter", async || dead::get(system.partition(), id).await.expect("a look")).await
}

async fn is_issued(system: &System, id: IssuanceId) {
    assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
}

/// Writes the record of an issuance that is in flight, with changes that this version cannot read.
async fn decided_unreadably(system: &System, id: IssuanceId, coupon: &CouponId, changes: Document) {
    let mut record = doc! {
        "_id": uuid(id), "p": 0, "outcome": "rejected", "reason": "discarded", "couponId": coupon.as_str(),
        "userId": "u", "lost": false, "acceptedAt": mongodb::bson::DateTime::now(),
        "decidedAt": mongodb::bson::DateTime::now(),
    };
    record.extend(changes);
    let ledger = system.backends.database.collection::<Document>("user_coupons");
    ledger.insert_one(record).await.expect("it is written");
}

fn unreadable() -> Vec<Document> {
    vec![
        doc! {"reason": "of-a-later-version"},
        doc! {"reason": 7},
        doc! {"outcome": "lent"},
        doc! {"outcome": "issued", "nth": 1},
        doc! {"outcome": "issued", "serial": "one", "unit": "one", "nth": 1},
        doc! {"outcome": "issued", "serial": 7_i64, "unit": 8_i64, "nth": 1},
        doc! {"userId": 5},
        doc! {"couponId": "a b"},
        doc! {"decidedAt": "today"},
    ]
}

#[tokio::test]
async fn an_issuance_whose_record_cannot_be_read_is_a_dead_letter_and_its_batch_is_decided() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 100, 1).await;
    let mut bad = Vec::new();
    for (number, changes) in unreadable().into_iter().enumerate() {
        let id = system.accepted(&format!("u{number}"), &coupon).await;
        let mut record = doc! {"userId": format!("u{number}")};
        record.extend(changes);
        decided_unreadably(&system, id, &coupon, record).await;
        bad.push(id);
    }
    let mut good = Vec::new();
    for number in 0..10 {
        good.push(system.accepted(&format!("v{number}"), &coupon).await);
    }
    let worker = system.worker();
    for id in &good {
        is_issued(&system, *id).await;
    }
    for id in &bad {
        let letter = dead_letter(&system, *id).await;
        assert!(letter.why.contains(&id.to_string()) && letter.why.contains("redrive"), "{}", letter.why);
    }
    assert_eq!(system.queue().await, (bad.len() as u64, bad.len() as u64), "they alone are left");

    // Once it is repaired and redriven, a worker settles it as it was decided.
    let ledger = system.backends.database.collection::<Document>("user_coupons");
    let mended = doc! {"$set": {"reason": "discarded"}};
    ledger.update_one(doc! {"_id": uuid(bad[0])}, mended).await.expect("it is mended");
    assert!(dead::redrive(system.partition(), bad[0]).await.expect("it is sent through again"));
    assert_eq!(system.client.decided(&bad[0].to_string()).await.state(), "rejected");
    worker.cancel();
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_said_to_be_one_and_not_missing() {
    let system = System::builder().flags(&["--require-registered-users=false"]).start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let good = system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries).await.expect("it is issued");
    let bad = IssuanceId::generate(PartitionId::ONE);
    let unit = doc! {"outcome": "issued", "serial": 5_i64, "unit": 5_i64, "nth": "first", "userId": "u0"};
    decided_unreadably(&system, bad, &coupon, unit).await;

    for path in [format!("/issuances/{bad}"), format!("/user-coupons/u0/{bad}")] {
        let told = system.client.get(&path).await;
        assert_eq!((told.status, told.code()), (500, "outcome-unreadable"), "{path}");
        assert_eq!(told.body["retryable"], false);
    }
    is_issued(&system, good).await;
    let listed = system.client.get("/user-coupons/u0").await;
    assert_eq!((listed.status, listed.body["items"].as_array().map(Vec::len)), (200, Some(1)));
    assert_eq!(listed.body["items"][0]["id"], good.to_string());
    let export = system.client.request("GET", "/coupons/c/user-coupons").send().await.expect("an answer");
    assert_eq!(export.status(), 200, "one record fails the export");
    let lines = export.text().await.expect("all of it");
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0]["id"], good.to_string());
    let told = serde_json::json!({
        "id": bad.to_string(), "couponId": "c", "userId": "u0", "serial": 5, "status": "unreadable",
    });
    assert_eq!(lines[1], told);
    assert_eq!(lines[2], serde_json::json!({"end": true, "count": 2, "unreadable": 1, "after": 5}));
}

#[tokio::test]
async fn an_entry_whose_id_names_another_partition_is_set_aside_and_its_batch_is_decided() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 5, 1).await;
    let good = system.accepted("u0", &coupon).await;
    let elsewhere = IssuanceId::generate(PartitionId::new(3).expect("a number"));
    let stray = Request { id: elsewhere, ..request("u1", &coupon) };
    reserve(system.partition(), &[stray], NO_BACKLOG_MAX, QueueEntries::OfOne).await.expect("it is queued");
    let _worker = system.worker();
    is_issued(&system, good).await;
    let letter = dead_letter(&system, elsewhere).await;
    assert!(letter.why.contains("partition 0") && letter.why.contains("(3)"), "{}", letter.why);
    let records = system.backends.database.collection::<Document>("user_coupons");
    assert_eq!(
        records.count_documents(doc! {}).await.expect("a count"),
        1,
        "no index compares it with the others"
    );
    let report = system.audited().await;
    let found: Vec<_> = report.findings().map(|found| (found.kind, found.issuances.clone())).collect();
    assert_eq!(found, [(FindingKind::Misrouted, vec![elsewhere])]);
    dead::discard(system.partition(), &system.backends.ledger, elsewhere).await.expect("it is discarded");
    let decided = system.backends.ledger.decisions(&[elsewhere]).await.expect("a look").remove(&elsewhere);
    let outcome = decided.expect("it is decided").expect("it is readable").outcome;
    assert!(matches!(outcome, Outcome::Rejected { reason: Reason::Discarded, .. }), "{outcome:?}");
    assert_eq!(system.settled(&coupon).await.remaining, 4);
}

#[tokio::test]
async fn units_of_records_that_cannot_be_read_are_held_by_somebody() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 5, 1).await;
    system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    // Another issuance has the unit, and its record cannot be read; nor can the record of the user's own issuance.
    let other = IssuanceId::generate(PartitionId::ONE);
    let unit = doc! {"outcome": "issued", "serial": 1_i64, "unit": 1_i64, "nth": "first", "userId": "u9"};
    decided_unreadably(&system, other, &coupon, unit).await;
    let BatchDecisions { settlements, left } =
        system.decider().decide(&system.keys(), &entries).await.expect("decided");
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(settlements[0].decision.outcome, Outcome::Issued { unit: native(2), nth: 1 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_that_mongodb_refuses_are_set_aside_in_seconds_and_others_are_served_at_once() {
    const REFUSED: usize = 3_000;
    let system = System::start().await;
    system.leaves_in_flight();
    let (bad, good) = (system.coupon("bad", 10_000, 1).await, system.coupon("good", 10, 1).await);
    let refused = doc! {"couponId": {"$ne": "bad"}};
    let validator = doc! {"collMod": "user_coupons", "validator": refused};
    system.backends.database.run_command(validator).await.expect("it is changed");
    accept_many(&system, &bad, "u", REFUSED).await;
    let _worker = system.worker();
    let id = system.accepted("v0", &good).await;
    let started = Instant::now();
    is_issued(&system, id).await;
    assert!(started.elapsed() < Duration::from_secs(10), "it waited for those that are refused");

    eventually("they are all set aside", async || {
        (dead_letters(&system).await == REFUSED as u64).then_some(())
    })
    .await;
    let (letters, _) = dead::scan(system.partition(), 0, 10).await.expect("a look");
    assert!(
        letters.iter().all(|letter| letter.attempts == ATTEMPTS_MAX && letter.why.contains("validation"))
    );
    assert_eq!(system.stock(&bad).await.reserved, REFUSED as u32);
    let again = system.accepted("v1", &good).await;
    is_issued(&system, again).await;
}

/// Has MongoDB answer each write of a document with code 371, or stop doing so.
async fn block_writes(system: &System, on: bool) {
    let admin = system.backends.database.client().database("admin");
    let command = doc! {"setUserWriteBlockMode": 1, "global": on};
    admin.run_command(command).await.expect("it obeys");
}

#[tokio::test]
async fn writes_that_are_blocked_for_a_while_reject_nothing_and_set_nothing_aside() {
    const ENTRIES: usize = 300;
    let (mongodb, _folder) = obedient_mongodb().await;
    let system = System::builder().mongodb(mongodb.url()).start().await;
    let coupon = system.coupon("c", 1_000, 1).await;
    block_writes(&system, true).await;
    accept_many(&system, &coupon, "u", ENTRIES).await;
    let _worker = system.worker();
    // Long enough for more attempts than a refused entry gets.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(dead_letters(&system).await, 0, "nobody can tell, and that uses up no attempts");
    assert_eq!(system.stock(&coupon).await.issued, 0);
    block_writes(&system, false).await;
    assert_eq!(system.settled(&coupon).await.issued, ENTRIES as u32);
    assert_eq!(dead_letters(&system).await, 0);
    assert_eq!(system.queue().await, (0, 0));
}

#[tokio::test]
async fn what_an_answer_of_mongodb_means_is_told_document_by_document() {
    let (mongodb, _folder) = obedient_mongodb().await;
    let system = System::builder().mongodb(mongodb.url()).start().await;
    let coupon = system.coupon("c", 10, 1).await;
    system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    block_writes(&system, true).await;
    let left = match system.decider().process(&system.keys(), &entries).await {
        Ok(BatchOutcome::Here(left)) => left,
        // MongoDB refuses the whole command, so that the outcome of each document is unknown.
        Err(_) => Vec::new(),
        Ok(other) => panic!("{other:?}"),
    };
    block_writes(&system, false).await;
    assert!(left.iter().all(|(_, why)| matches!(why, Unsettled::Unclear(_))), "{left:?}");
    system.decider().process(&system.keys(), &entries).await.expect("it is issued");
    assert_eq!(system.settled(&coupon).await.issued, 1);
}

async fn change_coupon(system: &System, id: &str, change: Document) {
    let coupons = system.backends.database.collection::<Document>("coupons");
    let changed = coupons.update_one(doc! {"_id": id}, change).await;
    assert_eq!(changed.expect("an answer").modified_count, 1);
}

#[tokio::test]
async fn a_discount_of_a_later_version_keeps_no_entry_of_its_coupon_waiting() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let id = system.accepted("u0", &coupon).await;
    let discount = doc! {"type": "bundle", "of": ["a", "b"]};
    change_coupon(&system, "c", doc! {"$set": {"discount": discount}}).await;
    let _worker = system.worker();
    is_issued(&system, id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_entries_of_a_coupon_that_cannot_be_read_keep_no_other_waiting() {
    const STUCK: usize = 20_000;
    let system = System::start().await;
    let (bad, good) = (system.coupon("bad", 100_000, 1).await, system.coupon("good", 100, 1).await);
    accept_many(&system, &bad, "u", STUCK).await;
    change_coupon(&system, "bad", doc! {"$set": {"total": "many"}}).await;
    let _worker = system.worker_with(Concurrency { batches: 2, batch_size: 100 });
    eventually("they are all delivered", async || {
        let (length, pending) = system.queue().await;
        (length == pending).then_some(())
    })
    .await;
    // Meanwhile sweeps bring these entries back again and again.
    for number in 0..30 {
        let id = system.accepted(&format!("v{number}"), &good).await;
        let started = Instant::now();
        is_issued(&system, id).await;
        assert!(started.elapsed() < Duration::from_secs(10), "it waited for what nobody can decide");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(dead_letters(&system).await, 0);
    change_coupon(&system, "bad", doc! {"$set": {"total": 100_000_i64}}).await;
    eventually("they are issued once it is mended", async || {
        (system.stock(&bad).await.issued == STUCK as u32).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_entry_whose_coupon_has_no_record_any_more_is_a_dead_letter_that_says_so() {
    let system = System::start().await;
    let (gone, good) = (system.coupon("gone", 10, 1).await, system.coupon("good", 10, 1).await);
    let coupons = system.backends.database.collection::<Document>("coupons");
    let record =
        coupons.find_one_and_delete(doc! {"_id": "gone"}).await.expect("an answer").expect("a record");
    let ids = [system.accepted("u0", &gone).await, system.accepted("u1", &good).await];
    let _worker = system.worker();
    is_issued(&system, ids[1]).await;
    let letter = dead_letter(&system, ids[0]).await;
    assert!(letter.why.contains("coupon gone has no record"), "{}", letter.why);
    coupons.insert_one(record).await.expect("it is restored");
    assert!(dead::redrive(system.partition(), ids[0]).await.expect("it is sent through again"));
    is_issued(&system, ids[0]).await;
}

#[tokio::test]
async fn what_redis_holds_of_one_coupon_is_damaged_and_the_others_of_the_batch_are_settled() {
    let system = System::start().await;
    let (bad, good) = (system.coupon("bad", 10, 1).await, system.coupon("good", 10, 1).await);
    let ids = [system.accepted("u0", &bad).await, system.accepted("u0", &good).await];
    let keys = system.keys();
    let _: String = system.command(&["SET", &keys.holders(&bad), "something else"]).await;
    let _worker = system.worker();
    is_issued(&system, ids[1]).await;
    // It is decided and announced too; the audit repairs the counts of its coupon in Redis.
    is_issued(&system, ids[0]).await;
    assert_eq!(system.settled(&good).await.issued, 1);
}

#[tokio::test]
async fn a_dead_letter_that_cannot_be_read_is_listed_with_the_others_and_can_be_redriven() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let ids = [system.accepted("u0", &coupon).await, system.accepted("u1", &coupon).await];
    let (partition, keys) = (system.partition(), system.keys());
    for entry in system.take_entries().await {
        assert!(
            dead::set_aside(partition, &keys, &entry.entry, entry.id, 3, "why").await.expect("set aside")
        );
    }
    let mut damage = redis::cmd("HSET");
    damage.arg(keys.dead()).arg(ids[0].as_bytes().as_slice()).arg(&[0xff_u8, 0xfe][..]);
    damage.query_async::<()>(&mut partition.connection()).await.expect("it is damaged");

    let listed = system.client.get("/dead-letters").await;
    assert_eq!(listed.body["items"].as_array().map(Vec::len), Some(2), "{listed:?}");
    let shown = system.client.get(&format!("/dead-letters/{}", ids[0])).await;
    assert!(shown.body["reason"].as_str().is_some_and(|why| why.contains("cannot be read")), "{shown:?}");
    let _worker = system.worker();
    for id in ids {
        assert!(dead::redrive(partition, id).await.expect("it is sent through again"));
        is_issued(&system, id).await;
    }
}

#[tokio::test]
async fn a_damaged_value_in_flight_keeps_the_worker_from_nothing() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    for (number, value) in
        ["", "9-9", "x 1 1 1 1 c u0", "99999999999999999999-0 1 1 1 1 c u0", "-  "].iter().enumerate()
    {
        let id = IssuanceId::generate(PartitionId::ONE);
        let mut damage = redis::cmd("HSET");
        damage.arg(system.keys().in_flight()).arg(id.as_bytes().as_slice()).arg(*value);
        damage.query_async::<()>(&mut system.partition().connection()).await.expect("it is planted");
        // It must not hinder the search for lost entries either.
        queue::restore(system.partition(), None, 100).await.unwrap_or_else(|why| panic!("{number}: {why:?}"));
    }
    let lost = system.accepted("u9", &coupon).await;
    system.command::<()>(&["XTRIM", &system.keys().stream(), "MAXLEN", "0"]).await;
    let _worker = system.worker();
    is_issued(&system, lost).await;
}

/// Has MongoDB answer each document of the coupon "bad" with a code that is on no list (an index cannot hold it), or
/// stop doing so.
async fn never_told(system: &System, on: bool) {
    let index = "nobody-knows";
    let command = if on {
        doc! {"createIndexes": "user_coupons", "indexes": [{
            "key": {"userId": "2dsphere"}, "name": index, "partialFilterExpression": {"couponId": "bad"},
        }]}
    } else {
        doc! {"dropIndexes": "user_coupons", "index": index}
    };
    system.backends.database.run_command(command).await.expect("it obeys");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_can_tell_of_some_documents_keeps_no_other_waiting_and_nothing_is_lost() {
    let mut rounds = Vec::new();
    // The refused entries come alone, as a part of batches, and as whole batches.
    for bad_ones in [1, 100, 400] {
        rounds.push(async move {
            let system = System::start().await;
            let (bad, good) = (system.coupon("bad", 1_000, 1).await, system.coupon("good", 1_000, 1).await);
            never_told(&system, true).await;
            accept_many(&system, &bad, "b", bad_ones).await;
            accept_many(&system, &good, "g", 50).await;
            let oldest = figures(system.partition()).await.expect("the figures");
            let _worker = system.worker_with(Concurrency { batches: 2, batch_size: 100 });
            for number in 0..10 {
                let started = Instant::now();
                let id = system.accepted(&format!("v{number}"), &good).await;
                is_issued(&system, id).await;
                let waited = started.elapsed();
                assert!(waited < Duration::from_secs(15), "beside {bad_ones}: {waited:?}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            eventually("the others are issued", async || {
                (system.stock(&good).await.issued == 60).then_some(())
            })
            .await;
            let told = figures(system.partition()).await.expect("the figures");
            assert_eq!((told.dead, told.in_flight), (0, bad_ones as u64), "nothing is set aside");
            assert!(told.oldest_at.is_some() && told.oldest_age() >= oldest.oldest_age());
            never_told(&system, false).await;
            eventually("they are issued as soon as they can be", async || {
                (system.stock(&bad).await.issued == bad_ones as u32).then_some(())
            })
            .await;
            assert_eq!(system.queue().await, (0, 0));
        });
    }
    for round in rounds {
        round.await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_are_blocked_in_the_midst_of_batches_set_nothing_aside() {
    const ENTRIES: usize = 4_000;
    let (mongodb, _folder) = obedient_mongodb().await;
    let system = System::builder().mongodb(mongodb.url()).start().await;
    let coupon = system.coupon("c", ENTRIES as u32, 1).await;
    accept_many(&system, &coupon, "u", ENTRIES).await;
    let _worker = system.worker_with(Concurrency { batches: 4, batch_size: 500 });
    let mut partly = false;
    for _ in 0..20 {
        for (on, pause) in [(true, 30), (false, 60)] {
            block_writes(&system, on).await;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        let issued = system.stock(&coupon).await.issued as usize;
        partly |= issued > 0 && issued < ENTRIES;
    }
    assert!(partly, "nothing was blocked");
    assert_eq!(system.settled(&coupon).await.issued, ENTRIES as u32);
    assert_eq!(dead_letters(&system).await, 0);
    assert_eq!(system.queue().await, (0, 0));
}
