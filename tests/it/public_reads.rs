//! Public reads cost little: the API counts the units of an ended coupon once for all readers, and lists count
//! nothing.

use std::time::Duration;

use coupon_system::coupon::CouponChange;
use coupon_system::ids::CouponId;
use coupon_system::recovery;
use futures::future::join_all;
use mongodb::bson::{Document, doc};
use serde_json::json;

use crate::helpers::{System, at};

/// Creates a coupon that ended hours ago and that Redis does not have.
async fn over(system: &System, id: &str, issued: u32) -> CouponId {
    let record = system.coupon_record(id, 50_000, 1, at(-20_000), at(-10_000)).await;
    system.write_issued(&record.id, "u", 1..=issued).await;
    record.id
}

/// The number of aggregations that the ledger has run: each count is one.
async fn counts(system: &System) -> i64 {
    let profile = system.backends.database.collection::<Document>("system.profile");
    let of_ledger = doc! {"command.aggregate": "user_coupons"};
    i64::try_from(profile.count_documents(of_ledger).await.expect("a look")).expect("a few")
}

async fn profiled(system: &System) {
    system.backends.database.run_command(doc! {"profile": 2}).await.expect("it is noted what runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coupon_that_is_over_is_counted_once_for_all_who_look_and_its_count_is_kept() {
    const ISSUED: u32 = 20_000;
    let system = System::start().await;
    let coupon = over(&system, "c", ISSUED).await;
    profiled(&system).await;
    let path = format!("/coupons/{coupon}");
    let answers = join_all((0..300).map(|_| system.client.get(&path))).await;
    for answer in answers {
        assert_eq!(answer.status, 200, "{answer:?}");
        let stock = json!({"total": 50_000, "remaining": 30_000, "reserved": 0, "issued": ISSUED});
        assert_eq!(answer.body["stock"], stock);
    }
    // A read may begin before the count of the read before it is stored; on a slow machine, a few may.
    let counted = counts(&system).await;
    assert!((1..=15).contains(&counted), "{counted} counts for 300 looks");
    let kept = system.backends.database.collection::<Document>("coupons");
    let kept = kept.find_one(doc! {"_id": "c"}).await.expect("a look").expect("a record");
    let final_count = kept.get_document("finalCount").expect("it is kept");
    assert_eq!(final_count.get_i64("issued").expect("a number"), i64::from(ISSUED));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_that_are_abandoned_leave_nothing_behind_that_goes_on_counting() {
    let system = System::start().await;
    let coupons: Vec<_> =
        join_all((0..4).map(async |number| over(&system, &format!("c{number}"), 2_000).await)).await;
    system.users("u", 1).await;
    system.coupon("current", 10, 1).await;
    profiled(&system).await;
    let looks = (0..300).map(|number| {
        let request = system.client.request("GET", &format!("/coupons/{}", coupons[number % coupons.len()]));
        tokio::time::timeout(Duration::from_millis(300), request.send())
    });
    join_all(looks).await;
    assert_eq!(
        system.client.get(&format!("/coupons/{}", coupons[0])).await.status,
        200,
        "one that is not abandoned"
    );
    let answer = system.client.issue("u0", "current", None).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let counted = counts(&system).await;
    // Reads share a count; without that there would be 300 counts.
    assert!((1..60).contains(&counted), "{counted} counts of {} coupons", coupons.len());
    system.drain().await;
}

#[tokio::test]
async fn lists_count_nothing_and_show_what_is_kept() {
    let system = System::start().await;
    let coupon = system.coupon("kept", 5, 1).await;
    system.accepted("u1", &coupon).await;
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries).await.expect("it is issued");
    let over_now = CouponChange::Edit { name: None, starts_at: None, ends_at: Some(at(-1)) };
    system.backends.coupons.change(&coupon, &over_now, None).await.expect("it is over");
    let service = coupon_system::service::ServiceStore::new(&system.backends.database);
    let record = system.backends.coupons.get(&coupon).await.expect("a look").expect("a record");
    let state = service.get().await.expect("the state");
    coupon_system::coupon::admin_sync::apply(system.partition(), state, &[record])
        .await
        .expect("Redis has it");
    let retired = recovery::retire(system.partition(), &system.backends.coupons, Duration::ZERO).await;
    assert_eq!(retired.expect("it is retired"), [coupon]);
    over(&system, "uncounted", 100).await;
    profiled(&system).await;
    let listed = system.client.get("/coupons").await;
    let shown = |id: &str| {
        let items = listed.body["items"].as_array().expect("a list");
        items.iter().find(|item| item["id"] == id).map(|item| item["stock"].clone()).expect("it is there")
    };
    assert_eq!(shown("kept"), json!({"total": 5, "remaining": 4, "reserved": 0, "issued": 1}));
    assert_eq!(shown("uncounted"), json!(null));
    assert_eq!(counts(&system).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_read_by_few_at_a_time_and_who_finds_no_place_is_told_so() {
    let system = System::start().await;
    for number in 0..20 {
        system.coupon(&format!("c{number}"), 5, 1).await;
    }
    system.users("u", 1).await;
    let lists = join_all((0..400).map(|_| system.client.get("/coupons?limit=500")));
    let (answers, issued) = tokio::join!(lists, system.client.issue("u0", "c0", None));
    assert_eq!(issued.status, 202);
    for answer in &answers {
        let told = (answer.status, answer.code());
        assert!(matches!(told, (200, "") | (503, "overloaded")), "{told:?}");
    }
    assert!(answers.iter().any(|answer| answer.status == 200));
    assert_eq!(system.client.get("/coupons").await.status, 200);
    system.drain().await;
}
