//! The validity of held coupons: it never ends before the issue, and counts by the coupon's calendar.

use coupon_system::coupon::{Coupon, CouponTimeZone, Validity};
use coupon_system::ids::CouponId;
use jiff::Timestamp;
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};

use crate::helpers::{Answer, System, at, eventually};

async fn patch(system: &System, path: &str, body: Value) -> Answer {
    system.client.send(system.client.request("PATCH", path).json(&body)).await
}

#[track_caller]
fn refused(answer: &Answer, pointer: &str) {
    assert_eq!((answer.status, &answer.body["errors"][0]["pointer"]), (422, &json!(pointer)), "{answer:?}");
}

fn coupon(id: &str, more: Value) -> Value {
    let mut body = json!({
        "id": id, "name": "n", "total": 10,
        "startsAt": "2026-01-01T00:00:00Z", "endsAt": "2036-01-01T00:00:00Z",
    });
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

#[tokio::test]
async fn a_coupon_is_never_issued_beyond_its_validity() {
    let system = System::start().await;
    let create = async |id, more| system.client.post("/coupons", coupon(id, more)).await;
    refused(&create("c", json!({"validUntil": "2035-12-31T23:59:59.999Z"})).await, "#/validUntil");
    refused(&create("c", json!({"validUntil": "2030-01-01T00:00:00Z"})).await, "#/validUntil");
    assert_eq!(create("c", json!({"validUntil": "2036-01-01T00:00:00Z"})).await.status, 201);
    assert_eq!(create("d", json!({"validUntil": "2036-06-01T00:00:00Z"})).await.status, 201);
    for (id, ends_at, is_taken) in [
        ("c", "2036-01-01T00:00:00.001Z", false),
        ("d", "2036-06-01T00:00:00.001Z", false),
        ("d", "2036-06-01T00:00:00Z", true),
        ("c", "2026-02-01T00:00:00Z", true),
    ] {
        let edited = patch(&system, &format!("/coupons/{id}"), json!({"endsAt": ends_at})).await;
        match is_taken {
            true => assert_eq!(edited.status, 200, "{edited:?}"),
            false => refused(&edited, "#/endsAt"),
        }
    }
    for wrong in
        ["P0D", "PT0S", "-P1D", "P-1D", "PT0.001S", "P11Y", "P1000000Y", "PT99999999999999999H", "1 month"]
    {
        refused(&create("e", json!({"validFor": wrong})).await, "#/validFor");
    }
}

#[tokio::test]
async fn a_coupon_of_an_older_version_that_would_be_issued_beyond_its_validity_ends_with_it() {
    let system = System::start().await;
    system.users("u", 1).await;
    let plain = system.coupon_record("template", 1, 1, at(-60), at(600)).await;
    let id: CouponId = "c".parse().expect("an id");
    let old = Coupon { id: id.clone(), validity: Validity::Until(at(-30)), ..plain };
    system.backends.coupons.insert(&old).await.expect("it is written");
    system.backends.loaders().first().load(&id).await.expect("it is loaded");
    // As an API does when it starts.
    assert_eq!(system.backends.coupons.end_with_validity().await.expect("an answer"), 1);
    eventually("Redis hears of it", async || {
        let key = system.keys().coupon(&id);
        let end: Option<i64> = system.command(&["HGET", &key, "ends_at"]).await;
        // The coupon may be retired by then.
        end.is_none_or(|end| end < at(0).as_millisecond()).then_some(())
    })
    .await;
    assert_eq!(system.client.issue("u0", "c", None).await.code(), "ended");
    let shown = system.client.get("/coupons/c").await.body;
    assert_eq!((&shown["status"], &shown["endsAt"]), (&json!("ended"), &shown["validUntil"]));
    assert_eq!(system.client.get("/coupons/template").await.body["status"], "open");
    assert_eq!(system.backends.coupons.end_with_validity().await.expect("an answer"), 0, "once is enough");
}

#[tokio::test]
async fn a_months_validity_is_counted_in_the_coupons_time_zone() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.worker();
    let made = system
        .client
        .post("/coupons", coupon("c", json!({"validFor": "P1M", "timeZone": "Asia/Seoul"})))
        .await;
    assert_eq!((made.status, &made.body["timeZone"]), (201, &json!("Asia/Seoul")), "{made:?}");
    assert_eq!(system.client.get("/coupons/c").await.body, made.body);
    let unnamed = system.client.post("/coupons", coupon("d", json!({}))).await;
    assert_eq!(unnamed.body["timeZone"], "UTC");
    for wrong in [json!("KST"), json!("Asia/Atlantis"), json!("+09:00"), json!(""), json!(9)] {
        refused(&system.client.post("/coupons", coupon("e", json!({"timeZone": wrong}))).await, "#/timeZone");
    }

    let accepted = system.client.issue("u0", "c", None).await;
    assert_eq!(system.client.decided(&accepted.id()).await.state(), "issued");
    // Issued at 05:00 on the first of March in Seoul, which is still February in UTC.
    let issued: Timestamp = "2027-03-01T05:00:00+09:00".parse().expect("a time");
    let units = system.backends.database.collection::<Document>("user_coupons");
    let moment = mongodb::bson::DateTime::from_millis(issued.as_millisecond());
    let moved = units.update_one(doc! {"userId": "u0"}, doc! {"$set": {"decidedAt": moment}}).await;
    assert_eq!(moved.expect("an answer").modified_count, 1);
    let held = system.client.get("/user-coupons/u0").await.body["items"][0].take();
    assert_eq!(held["issuedAt"], "2027-02-28T20:00:00Z", "{held}");
    assert_eq!(held["validUntil"], "2027-03-31T20:00:00Z");
}

#[tokio::test]
async fn a_record_without_a_time_zone_is_of_utc_and_one_in_utc_is_as_an_older_version_writes_it() {
    let system = System::start().await;
    let plain = system.coupon_record("c", 1, 1, at(-60), at(60)).await;
    let zoned = Coupon {
        id: "d".parse().expect("an id"),
        time_zone: "Asia/Seoul".parse().expect("a zone"),
        ..plain.clone()
    };
    system.backends.coupons.insert(&zoned).await.expect("it is written");
    let records = system.backends.database.collection::<Document>("coupons");
    let record =
        async |id: &str| records.find_one(doc! {"_id": id}).await.expect("an answer").expect("a record");
    assert!(!record("c").await.contains_key("timeZone"));
    assert_eq!(record("d").await.get_str("timeZone").expect("a zone"), "Asia/Seoul");
    for coupon in [&plain, &zoned] {
        let read = system.backends.coupons.get(&coupon.id).await.expect("an answer").expect("a coupon");
        assert_eq!(read.time_zone, coupon.time_zone);
    }
    assert_eq!(plain.time_zone, CouponTimeZone::UTC);
}

#[tokio::test]
async fn what_was_accepted_before_the_end_and_is_decided_after_the_validity_can_be_used() {
    let system = System::start().await;
    system.users("u", 2).await;
    let end = at(2);
    let body = coupon("c", json!({"endsAt": end.to_string(), "validUntil": end.to_string()}));
    assert_eq!(system.client.post("/coupons", body).await.status, 201);
    let ids = ["u0", "u1"].map(|user| system.client.issue(user, "c", None));
    let ids = futures::future::join_all(ids).await;
    tokio::time::sleep(end.duration_since(Timestamp::now()).try_into().unwrap_or_default()).await;
    system.worker();
    for (user, accepted) in ["u0", "u1"].into_iter().zip(ids) {
        assert_eq!(accepted.status, 202, "{accepted:?}");
        assert_eq!(system.client.decided(&accepted.id()).await.state(), "issued");
        let path = format!("/user-coupons/{user}/{}", accepted.id());
        let held = system.client.get(&path).await.body;
        assert_eq!(held["status"], "active", "{held}");
        let time = |name: &str| held[name].as_str().expect("a time").parse::<Timestamp>().expect("a time");
        assert_eq!(time("validUntil").duration_since(time("issuedAt")).as_hours(), 24);
        let used = system.client.post(&format!("{path}/use"), json!({"reference": "o1"})).await;
        assert_eq!((used.status, &used.body["status"]), (200, &json!("used")), "{used:?}");
    }
}
