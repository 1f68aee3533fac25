//! When data may be certified as it is, and when not.

use coupon_system::dev::servers::{MongoOptions, MongoServer};
use mongodb::bson::{Document, doc};

use super::busy::BusyQueue;
use crate::helpers::{POLL_EVERY, System, accounts_hold, issued_to, recovered};

async fn restarted(system: &mut System) {
    system.redis.kill().await.expect("it is killed");
    system.redis.restart().await.expect("it is back");
    recovered(system).await;
}

#[tokio::test]
async fn intact_data_keeps_its_epoch_with_issuances_at_every_point_of_their_lives() {
    let mut system = System::start().await;
    let busy = BusyQueue::make(&system, "c").await;
    let (epoch, stock) = (system.keys().epoch(), system.stock(&busy.coupon).await);
    restarted(&mut system).await;
    assert_eq!((system.keys().epoch(), system.stock(&busy.coupon).await), (epoch, stock));
    busy.ends_well(&system, "restarted").await;
}

#[tokio::test]
async fn a_ledger_that_lacks_a_record_or_has_one_more_than_redis_knows_of_is_believed() {
    let mut system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    for user in 0..4 {
        system.accepted(&format!("u{user}"), &coupon).await;
    }
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries).await.expect("settled");
    let ledger = system.backends.database.collection::<Document>("user_coupons");

    let epoch = system.keys().epoch();
    let deleted = ledger.delete_one(doc! {"serial": 2, "outcome": "issued"}).await.expect("an answer");
    assert_eq!(deleted.deleted_count, 1);
    restarted(&mut system).await;
    assert_ne!(system.keys().epoch(), epoch, "a record fewer");
    assert_eq!(accounts_hold(&system, &coupon).await.remaining, 7);

    let epoch = system.keys().epoch();
    let added = issued_to(&coupon, "u9", 9);
    system.backends.ledger.insert(&[added]).await.expect("it is written");
    restarted(&mut system).await;
    assert_ne!(system.keys().epoch(), epoch, "a record more");
    assert_eq!(accounts_hold(&system, &coupon).await.remaining, 6);
}

#[tokio::test]
async fn a_record_that_changed_while_redis_was_away_is_believed() {
    let mut system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    system.accepted("u0", &coupon).await;
    let epoch = system.keys().epoch();
    system.redis.kill().await.expect("it is killed");
    let coupons = system.backends.database.collection::<Document>("coupons");
    let grown = doc! {"$set": {"total": 15_i64}, "$inc": {"generation": 1_i64}};
    let changed = coupons.update_one(doc! {"_id": "c"}, grown).await.expect("an answer");
    assert_eq!(changed.modified_count, 1);
    system.redis.restart().await.expect("it is back");
    recovered(&system).await;
    assert_ne!(system.keys().epoch(), epoch);
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.total, stock.remaining, stock.reserved), (15, 14, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_restarted_while_mongodb_is_away_stays_503_until_mongodb_is_back() {
    const POLLS: usize = 10;
    let folder = tempfile::tempdir().expect("a folder");
    let mut mongodb =
        MongoServer::start(MongoOptions::new(folder.path().join("mongodb"))).await.expect("it starts");
    let mut system =
        System::builder().mongodb(mongodb.url()).flags(&["--require-registered-users=false"]).start().await;
    let busy = BusyQueue::make(&system, "c").await;
    let (epoch, queued) = (system.keys().epoch(), busy.undecided[0]);
    mongodb.stop().await.expect("it stops");
    system.redis.kill().await.expect("it is killed");
    system.redis.restart().await.expect("it is back");
    for _ in 0..POLLS {
        let polled = system.client.get(&format!("/issuances/{queued}")).await;
        let refused = system.client.issue("u9", "c", None).await;
        for answer in [polled, refused] {
            // The first may find the old connection broken.
            assert!(["warming-up", "unavailable"].contains(&answer.code()), "{answer:?}");
            assert_eq!(answer.status, 503);
            assert!(!answer.header("retry-after").is_empty());
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    mongodb.restart().await.expect("it is back");
    recovered(&system).await;
    assert_eq!(system.keys().epoch(), epoch, "nothing was lost");
    assert_eq!(system.client.get(&format!("/issuances/{queued}")).await.state(), "queued");
    busy.ends_well(&system, "MongoDB is back").await;
}
