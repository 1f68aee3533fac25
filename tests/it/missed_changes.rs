//! Operators' changes that Redis missed, because an API died in between or its clock was wrong.

use coupon_system::coupon::{CouponChange, Restock, RestockAmount, admin_sync};
use coupon_system::ids::CouponId;
use coupon_system::service::ServiceStore;
use futures::TryStreamExt;
use mongodb::bson::{DateTime, Document, doc};
use tokio_util::sync::CancellationToken;

use crate::helpers::{System, eventually};

/// A field of a coupon in Redis.
async fn field(system: &System, coupon: &CouponId, name: &str) -> String {
    system.command(&["HGET", &system.keys().coupon(coupon), name]).await
}

fn records(system: &System) -> mongodb::Collection<Document> {
    system.backends.database.collection("coupons")
}

async fn mongodb_now(system: &System) -> DateTime {
    let hello = system.backends.database.run_command(doc! {"hello": 1}).await.expect("an answer");
    *hello.get_datetime("localTime").expect("a time")
}

/// Reconciles as an API process that starts now.
fn reconcile(system: &System) -> CancellationToken {
    let stop = CancellationToken::new();
    tokio::spawn(admin_sync::reconcile(
        system.backends.partitions.clone(),
        system.backends.coupons.clone(),
        ServiceStore::new(&system.backends.database),
        stop.clone(),
    ));
    stop
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_thousand_changes_that_redis_missed_the_last_one_arrives_too() {
    const OTHERS: usize = 10_001;
    let mut system = System::start().await;
    let coupon = system.coupon("zz-last", 5, 1).await;
    system.stop().await;
    let coupons = records(&system);
    let record = coupons.find_one(doc! {"_id": coupon.as_str()}).await.expect("a look").expect("a record");
    let now = mongodb_now(&system).await;
    let others = (0..OTHERS).map(|number| {
        let mut other = record.clone();
        // All change in one millisecond, so that a page may end between them.
        other.extend(doc! {"_id": format!("other{number}"), "generation": 2_i64, "changedAt": now});
        other
    });
    coupons.insert_many(others.collect::<Vec<_>>()).await.expect("they are written");
    system.backends.coupons.change(&coupon, &CouponChange::Pause, None).await.expect("it is changed");
    assert_eq!(field(&system, &coupon, "paused").await, "0");
    let stop = reconcile(&system);
    eventually("Redis hears of it", async || (field(&system, &coupon, "paused").await == "1").then_some(()))
        .await;
    stop.cancel();
}

#[tokio::test]
async fn a_change_is_stamped_by_the_clock_of_mongodb() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let renamed = CouponChange::Edit { name: Some("$NOW".into()), starts_at: None, ends_at: None };
    let restocked = CouponChange::Restock(Restock { units: RestockAmount::Add(3), key: None });
    let database = &system.backends.database;
    database.run_command(doc! {"profile": 2}).await.expect("it keeps what it is sent");
    for change in [CouponChange::Pause, renamed, restocked, CouponChange::Resume, CouponChange::Archive] {
        // A process with a slow clock wrote it.
        let long_ago = doc! {"$set": {"changedAt": DateTime::from_millis(0)}};
        records(&system).update_one(doc! {"_id": "c"}, long_ago).await.expect("it is changed");
        let before = mongodb_now(&system).await;
        system.backends.coupons.change(&coupon, &change, None).await.expect("it is changed");
        let after = mongodb_now(&system).await;
        let record = records(&system).find_one(doc! {"_id": "c"}).await.expect("a look").expect("a record");
        let changed_at = *record.get_datetime("changedAt").expect("a time");
        assert!((before..=after).contains(&changed_at), "{change:?}: {before} {changed_at} {after}");
        if matches!(change, CouponChange::Edit { .. }) {
            assert_eq!(record.get_str("name").expect("a name"), "$NOW");
        }
    }
    // All processes of this machine share one clock, so the test checks which clock the command asks for.
    database.run_command(doc! {"profile": 0}).await.expect("it stops");
    let profile = database.collection::<Document>("system.profile");
    let sent = profile.find(doc! {"command.findAndModify": "coupons"}).await.expect("a look");
    let sent: Vec<Document> = sent.try_collect().await.expect("all of it");
    assert_eq!(sent.len(), 5);
    for sent in sent {
        let update = sent.get_document("command").and_then(|command| command.get_document("update"));
        let stamped = update.and_then(|update| update.get_document("$currentDate"));
        assert_eq!(stamped.ok(), Some(&doc! {"changedAt": true}), "{sent}");
    }
}

#[tokio::test]
async fn what_redis_holds_of_the_same_generation_and_differs_is_brought_up_to_the_record() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let services = ServiceStore::new(&system.backends.database);
    services.set_paused(true).await.expect("paused");
    let record = system.backends.coupons.get(&coupon).await.expect("a look").expect("a record");
    let apply = async || {
        let service = services.get().await.expect("the state");
        admin_sync::apply(system.partition(), service, std::slice::from_ref(&record))
            .await
            .expect("an answer")
    };
    apply().await;
    assert_eq!(apply().await, 0, "nothing differs");
    for (name, wrong) in
        [("paused", "1"), ("archived", "x"), ("starts_at", "x"), ("ends_at", "0"), ("total", "4")]
    {
        let was = field(&system, &coupon, name).await;
        system.command::<()>(&["HSET", &system.keys().coupon(&coupon), name, wrong]).await;
        assert_eq!(apply().await, 1, "{name}");
        assert_eq!(field(&system, &coupon, name).await, was);
    }
    let counters = system.keys().counters();
    for (name, wrong) in [("paused", "0"), ("paused", "x"), ("service_generation", "x")] {
        system.command::<()>(&["HSET", &counters, name, wrong]).await;
        assert_eq!(apply().await, 1, "{name}");
        let kept: (String, String) =
            system.command(&["HMGET", &counters, "paused", "service_generation"]).await;
        assert_eq!(kept, ("1".into(), "1".into()));
    }
}

#[tokio::test]
async fn a_coupon_whose_state_in_redis_cannot_be_read_does_not_keep_changes_from_the_others() {
    let system = System::start().await;
    let (bad, good) = (system.coupon("bad", 5, 1).await, system.coupon("good", 5, 1).await);
    let key = system.keys().coupon(&bad);
    let services = ServiceStore::new(&system.backends.database);
    for (number, words) in [
        vec!["HSET", &key, "generation", "x"],
        vec!["HSET", &key, "total", ""],
        vec!["DEL", &key],
        vec!["SET", &key, "of another type"],
    ]
    .into_iter()
    .enumerate()
    {
        system.command::<redis::Value>(&words).await;
        let change = if number % 2 == 0 { CouponChange::Pause } else { CouponChange::Resume };
        let mut changed = Vec::new();
        for coupon in [&bad, &good] {
            system.backends.coupons.change(coupon, &change, None).await.expect("it is changed");
            changed.push(system.backends.coupons.get(coupon).await.expect("a look").expect("a record"));
        }
        let service = services.get().await.expect("the state");
        admin_sync::apply(system.partition(), service, &changed).await.expect("an answer");
        assert_eq!(field(&system, &good, "paused").await, (1 - number % 2).to_string(), "{words:?}");
    }
}
