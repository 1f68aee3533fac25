//! What is wrong with one entry, record or coupon stays with it: the others are decided as if it were not
//! there, and it is named.

use coupon_system::coupon::CouponId;
use coupon_system::issuance::{IssuanceId, Outcome};
use coupon_system::queue::dead::{self, DeadLetter};
use coupon_system::worker::Decided;
use mongodb::bson::{Document, Uuid, doc};

use crate::helpers::{System, eventually};

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
        "_id": uuid(id), "outcome": "rejected", "reason": "discarded", "couponId": coupon.as_str(),
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
        doc! {"outcome": "issued", "serial": "one", "nth": 1},
        doc! {"userId": 5},
        doc! {"couponId": "a b"},
        doc! {"decidedAt": "today"},
    ]
}

#[tokio::test]
async fn an_issuance_whose_record_cannot_be_read_is_a_dead_letter_and_its_batch_is_decided() {
    let system = System::start().await;
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

    // Mended and sent through again, it is settled as it was decided.
    let ledger = system.backends.database.collection::<Document>("user_coupons");
    let mended = doc! {"$set": {"reason": "discarded"}};
    ledger.update_one(doc! {"_id": uuid(bad[0])}, mended).await.expect("it is mended");
    assert!(dead::redrive(system.partition(), bad[0]).await.expect("it is sent through again"));
    assert_eq!(system.client.decided(&bad[0].to_string()).await.state(), "rejected");
    worker.cancel();
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_said_to_be_one_and_not_missing() {
    let system = System::start_with(&["--require-registered-users=false"]).await;
    let coupon = system.coupon("c", 5, 1).await;
    let good = system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries).await.expect("it is issued");
    let bad = IssuanceId::generate(coupon_system::keys::PartitionId::ONE);
    let unit = doc! {"outcome": "issued", "serial": 5_i64, "nth": "first", "userId": "u0"};
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
    assert_eq!(lines[1], serde_json::json!({"end": true, "count": 1, "unreadable": 1, "after": 5}));
}

#[tokio::test]
async fn units_of_records_that_cannot_be_read_are_held_by_somebody() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    // Another issuance has the unit, and its record cannot be read; nor can the one that the user holds.
    let other = IssuanceId::generate(coupon_system::keys::PartitionId::ONE);
    let unit = doc! {"outcome": "issued", "serial": 1_i64, "nth": "first", "userId": "u9"};
    decided_unreadably(&system, other, &coupon, unit).await;
    let Decided { settlements, left } =
        system.decider().decide(&system.keys(), &entries).await.expect("decided");
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(settlements[0].decision.outcome, Outcome::Issued { serial: 2, nth: 1 });
}
