//! Deletions that break off, while the system goes on.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use coupon_system::Failure;
use coupon_system::config::{MongoConfig, RedisConfig};
use coupon_system::issuance::settle::{Settled, settle};
use coupon_system::issuance::{Outcome, Reason};
use coupon_system::privacy::{EraseOutcome, Eraser};
use coupon_system::process;
use coupon_system::recovery::Durability;
use coupon_system::user::{Deletion, MarkDeletedOutcome};
use mongodb::bson::{Document, doc};
use rand::RngExt;
use rustix::process::Signal;
use serde_json::json;

use super::traces;
use crate::helpers::{
    API, Client, System, adopted, at, chance, decision, eventually, program, recovered, rounds, send, serving,
};

const USER: &str = "halfway-user";

/// How far a deletion got before it broke off.
#[derive(Debug, Clone, Copy, PartialEq)]
enum BrokenStep {
    Marked,
    /// Redis counts the user under both names; the ledger knows the old one.
    Copied,
    /// The ledger knows the new name; Redis counts the user under both.
    Renamed,
    /// The same, but one record of three was not renamed yet.
    HalfRenamed,
}

fn eraser(system: &System) -> Eraser {
    Eraser::new(
        system.backends.partitions.clone(),
        system.backends.ledger.clone(),
        system.backends.database.clone(),
    )
}

async fn records_must(system: &System, validator: Document) {
    let changed =
        system.backends.database.run_command(doc! {"collMod": "user_coupons", "validator": validator});
    changed.await.expect("it is changed");
}

/// Breaks a deletion off.
async fn break_off(system: &System, broken: BrokenStep) -> Deletion {
    let users = &system.backends.users;
    let marked = users.mark_deleted(&USER.parse().expect("an id"), Duration::ZERO, false).await;
    let MarkDeletedOutcome::As(deletion) = marked.expect("an answer") else {
        panic!("the user is registered")
    };
    if broken != BrokenStep::Marked {
        // MongoDB refuses the pseudonym: the deletion fails after it has copied.
        records_must(system, doc! {"userId": {"$not": {"$regex": "^deleted:"}}}).await;
        eraser(system).erase(&deletion, at(10)).await.expect_err("it is refused");
        records_must(system, doc! {}).await;
    }
    if matches!(broken, BrokenStep::Renamed | BrokenStep::HalfRenamed) {
        let ledger = &system.backends.ledger;
        assert_eq!(ledger.rename(&deletion, at(10)).await.expect("an answer"), 3);
    }
    if broken == BrokenStep::HalfRenamed {
        let records = system.backends.database.collection::<Document>("user_coupons");
        let (one, back) =
            (doc! {"userId": deletion.pseudonym.as_str(), "nth": 2}, doc! {"$set": {"userId": USER}});
        assert_eq!(records.update_one(one, back).await.expect("an answer").modified_count, 1);
    }
    deletion
}

#[tokio::test]
async fn wherever_it_is_broken_off_the_accounts_hold_through_a_rebuild_and_a_load_and_it_can_be_ended() {
    for broken in [BrokenStep::Marked, BrokenStep::Copied, BrokenStep::Renamed, BrokenStep::HalfRenamed] {
        // Only this test carries the deletion out.
        let mut system = System::start().await;
        let coupon = system.coupon("c", 10, 3).await;
        system.users("u", 1).await;
        system.client.post("/users", json!({"id": USER})).await;
        let worker = system.worker();
        for (user, key) in [(USER, "k1"), (USER, "k2"), (USER, "k3"), ("u0", "k1")] {
            let id = system.client.issue(user, "c", Some(key)).await.id();
            system.client.decided(&id).await;
        }
        system.settled(&coupon).await;
        worker.cancel();
        system.stop().await;
        let deletion = break_off(&system, broken).await;
        system.audited_clean().await;

        // The coupon leaves Redis and is loaded again.
        let keys = system.keys();
        let _: u64 = system
            .command(&["DEL", &keys.coupon(&coupon), &keys.holders(&coupon), &keys.free(&coupon)])
            .await;
        system.backends.loaders().first().load(&coupon).await.expect("it is loaded");
        system.audited_clean().await;

        // The partition is rebuilt.
        let _: u64 = system.command(&["DEL", &keys.certificate()]).await;
        assert!(
            system
                .backends
                .recovery_supervisors()
                .next()
                .expect("that of partition 0")
                .ensure()
                .await
                .expect("a recovery")
        );
        recovered(&system).await;
        system.audited_clean().await;
        assert_eq!(system.stock(&coupon).await.issued, 4, "{broken:?}");

        for _ in 0..2 {
            let erased = eraser(&system).erase(&deletion, at(10)).await.expect("an answer");
            assert_eq!(erased, EraseOutcome::Done, "{broken:?}");
            assert_eq!(traces(&system, USER).await, Vec::<String>::new(), "{broken:?}");
            system.audited_clean().await;
        }
        assert_eq!(system.stock(&coupon).await.issued, 4, "{broken:?}");
    }
}

#[tokio::test]
async fn who_slept_in_the_middle_of_a_deletion_takes_nothing_of_the_next_person() {
    let mut system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    system.client.post("/users", json!({"id": USER})).await;
    system.stop().await;
    let deletion = break_off(&system, BrokenStep::Marked).await;
    let (_, slept) = system.backends.users.deletions().await.expect("a look");
    assert_eq!(eraser(&system).erase(&deletion, slept).await.expect("an answer"), EraseOutcome::Done);

    eventually("the clock goes on", async || (at(0) > slept).then_some(())).await;
    let user =
        coupon_system::user::User { id: USER.parse().expect("an id"), name: USER.into(), created_at: at(0) };
    assert_eq!(system.backends.users.insert(&[user]).await.expect("an answer"), [true]);
    system.accepted(USER, &coupon).await;
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries).await.expect("it is issued");
    // The eraser wakes.
    assert_ne!(eraser(&system).erase(&deletion, slept).await.expect("an answer"), EraseOutcome::Done);
    let held = system.backends.ledger.held_by(&coupon, &USER.parse().expect("an id")).await.expect("a look");
    assert_eq!(held.len(), 1);
    assert!(system.backends.users.get(&USER.parse().expect("an id")).await.expect("a look").is_some());
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_settled_while_a_deletion_looks_is_counted_once() {
    let mut system = System::start().await;
    let coupon = system.coupon("c", 10, 2).await;
    system.client.post("/users", json!({"id": USER})).await;
    // MongoDB refuses the pseudonym in one record: the deletion ends after the issued ones.
    let rejected = system.accepted(USER, &coupon).await;
    let entries = system.take_entries().await;
    let outcome = Outcome::Rejected { reason: Reason::Discarded, unit: entries[0].unit, lost: false };
    system.backends.ledger.insert(&[decision(&entries[0], outcome)]).await.expect("it is written");
    system.decider().process(&system.keys(), &entries).await.expect("it is rejected");
    assert!(!system.is_in_flight(rejected).await);
    system.accepted(USER, &coupon).await;
    let entries = system.take_entries().await;
    system.stop().await;
    let deletion = break_off(&system, BrokenStep::Marked).await;
    records_must(&system, doc! {"$nor": [{"outcome": "rejected", "userId": {"$regex": "^deleted:"}}]}).await;

    // The eraser has read the ledger, and is about to read Redis.
    let database = &system.backends.database;
    database.run_command(doc! {"profile": 2}).await.expect("it is watched");
    system.redis.pause().await.expect("it is paused");
    let (one, of) = (eraser(&system), deletion.clone());
    let erasing = tokio::spawn(async move { one.erase(&of, at(10)).await });
    let watched = database.collection::<Document>("system.profile");
    let reads = doc! {"op": "query", "ns": format!("{}.user_coupons", system.database)};
    eventually("it has read what they hold", async || {
        (watched.count_documents(reads.clone()).await.expect("a count") >= 2).then_some(())
    })
    .await;
    let (partition, keys) = (Arc::clone(system.backends.partitions.first()), system.keys());
    let decided = system.decider().decide(&keys, &entries).await.expect("it is issued");
    let mut settling = pin!(settle(&partition, &keys, &decided.settlements));
    assert!(futures::poll!(&mut settling).is_pending(), "it is on its way to Redis");
    system.redis.resume().expect("it goes on");
    assert_eq!(settling.await.expect("an answer"), [Settled::Now]);
    erasing.await.expect("no panic").expect_err("MongoDB refuses");

    system.audited_clean().await;
    assert_eq!(adopted(&system, &coupon).await, 0);
    records_must(&system, doc! {}).await;
    assert_eq!(eraser(&system).erase(&deletion, at(10)).await.expect("an answer"), EraseOutcome::Done);
    assert_eq!(system.stock(&coupon).await.issued, 1);
    system.audited_clean().await;
}

/// Users of one round, each with two coupons.
const USERS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_is_killed_in_the_middle_leaves_a_deletion_that_the_next_one_ends() {
    let mut chance = chance();
    let mut system = System::start().await;
    let coupons = [system.coupon("c", 1_000, 1).await, system.coupon("d", 1_000, 1).await];
    system.worker();
    let mut all = Vec::new();
    for round in 0..rounds(4) {
        let users = system.users(&format!("killed-{round}-"), USERS).await;
        for user in &users {
            for coupon in &coupons {
                system.accepted(user, coupon).await;
            }
        }
        all.push(users);
    }
    for coupon in &coupons {
        system.settled(coupon).await;
    }
    system.stop().await;
    let start = async || {
        let mut api = program(API, &system);
        api.args(["--listen", "127.0.0.1:0", "--user-deletion-delay", "1"]);
        serving(api).await
    };
    for users in &all {
        let (mut child, address) = start().await;
        let client = Client::new(address);
        for user in users {
            let answer = eventually("it answers", async || {
                let answer = client.send(client.request("DELETE", &format!("/users/{user}"))).await;
                (answer.status != 503).then_some(answer)
            })
            .await;
            assert_eq!(answer.status, 202, "{answer:?}");
        }
        // A second later the deletions are due, and the API carries them out at once.
        tokio::time::sleep(Duration::from_millis(chance.random_range(900..1_700))).await;
        send(&child, Signal::KILL);
        child.wait().await.expect("it ends");
        system.audited_clean().await;
    }
    let (_child, _) = start().await;
    eventually("all are gone", async || {
        let (deletions, _) = system.backends.users.deletions().await.expect("a look");
        deletions.is_empty().then_some(())
    })
    .await;
    assert_eq!(traces(&system, "killed-").await, Vec::<String>::new());
    system.audited_clean().await;
    for coupon in &coupons {
        assert_eq!(system.stock(coupon).await.issued as usize, USERS * all.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rebuilds_while_users_are_deleted_count_every_record_once() {
    /// From this round on the deletions may end, which each rebuild delays.
    const REBUILDS_MAX: usize = 60;
    let system = System::builder().flags(&["--user-deletion-delay", "1"]).start().await;
    let coupon = system.coupon("c", 1_000, 1).await;
    let worker = system.worker();
    // Names that the pseudonyms fall between: their records move in both directions.
    let (before, after) = (system.users("a-mover-", 12).await, system.users("z-mover-", 12).await);
    for user in before.iter().chain(&after).chain(&system.users("m", 12).await) {
        system.accepted(user, &coupon).await;
    }
    system.settled(&coupon).await;
    worker.cancel();
    for user in before.iter().chain(&after) {
        assert_eq!(super::delete(&system, user).await.status, 202);
    }
    let mut rebuilds = 0;
    loop {
        if rebuilds < REBUILDS_MAX {
            let _: u64 = system.command(&["DEL", &system.keys().certificate()]).await;
            recovered(&system).await;
            rebuilds += 1;
        }
        let report = system.audited().await;
        let findings: Vec<_> = report.findings().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "after {rebuilds} rebuilds: {findings:#?}");
        let (deletions, _) = system.backends.users.deletions().await.expect("a look");
        if deletions.is_empty() {
            break;
        }
    }
    assert_eq!(traces(&system, "mover-").await, Vec::<String>::new());
    assert_eq!(system.stock(&coupon).await.issued, 36);
    system.audited_clean().await;
}

#[tokio::test]
async fn a_deletion_does_nothing_where_redis_is_damaged_or_not_certified() {
    let mut system = System::start().await;
    let (coupon, damaged) = (system.coupon("c", 10, 1).await, system.coupon("d", 10, 1).await);
    system.client.post("/users", json!({"id": USER})).await;
    system.accepted(USER, &coupon).await;
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries).await.expect("it is issued");
    system.stop().await;
    let deletion = break_off(&system, BrokenStep::Marked).await;
    let (keys, held) = (system.keys(), traces(&system, USER).await);
    assert_eq!(held.len(), 4, "user, record, holder, and that an operator registered them: {held:?}");

    let _: String = system.command(&["SET", &keys.holders(&damaged), "something else"]).await;
    let refused = eraser(&system).erase(&deletion, at(10)).await;
    assert!(matches!(refused, Err(Failure::Damaged { .. })), "{refused:?}");
    assert_eq!(traces(&system, USER).await, held);
    let _: u64 = system.command(&["DEL", &keys.holders(&damaged)]).await;

    let _: String = system.command(&["RENAME", &keys.certificate(), "aside"]).await;
    let refused = eraser(&system).erase(&deletion, at(10)).await;
    assert!(matches!(refused, Err(Failure::Uncertified)), "{refused:?}");
    let _: String = system.command(&["RENAME", "aside", &keys.certificate()]).await;
    assert_eq!(traces(&system, USER).await, held);
    assert_eq!(eraser(&system).erase(&deletion, at(10)).await.expect("an answer"), EraseOutcome::Done);
    assert_eq!(traces(&system, USER).await, Vec::<String>::new());
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_whose_only_request_in_flight_is_for_a_coupon_that_is_not_loaded_waits_to_be_deleted() {
    let system = System::start().await;
    system.users("left-out-", 1).await;
    let coupon = system.coupon("c", 3, 1).await;
    let id = system.accepted("left-out-0", &coupon).await;
    let total = async |total: mongodb::bson::Bson| {
        let coupons = system.backends.database.collection::<Document>("coupons");
        let changed = coupons.update_one(doc! {"_id": "c"}, doc! {"$set": {"total": total}}).await;
        assert_eq!(changed.expect("an answer").modified_count, 1);
    };
    total("three".into()).await;
    system.command::<()>(&["DEL", &coupon_system::redis::keys::certificate(system.partition().id())]).await;
    recovered(&system).await;
    let users = &system.backends.users;
    let user = "left-out-0".parse().expect("an id");
    let MarkDeletedOutcome::As(deletion) =
        users.mark_deleted(&user, Duration::ZERO, false).await.expect("an answer")
    else {
        panic!("the user is registered")
    };
    assert_eq!(eraser(&system).erase(&deletion, at(10)).await.expect("an answer"), EraseOutcome::InFlight);
    let (still, _) = users.deletions().await.expect("a look");
    assert_eq!(still.len(), 1);

    total(3_i64.into()).await;
    let _worker = system.worker();
    assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
    eventually("nothing is left of the user", async || {
        let _ = eraser(&system).erase(&deletion, at(10)).await;
        traces(&system, "left-out-0").await.is_empty().then_some(())
    })
    .await;
    let audited =
        eventually("it is loaded", async || system.auditor().bracket(&coupon).await.expect("a look"));
    assert!(audited.await.holds());
}

/// It has just started, and asks Redis for the first time.
#[tokio::test]
async fn a_process_that_does_not_know_the_open_epoch_yet_renames_nothing() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    system.client.post("/users", json!({"id": USER})).await;
    let id = system.accepted(USER, &coupon).await;
    system.drain().await;
    let deletion = break_off(&system, BrokenStep::Marked).await;
    let redis = RedisConfig {
        redis_url: system.redis.url(),
        redis_durability: Durability::Always,
        redis_acknowledged_by: 0,
    };
    let mongodb =
        MongoConfig { mongodb_uri: system.mongodb_uri.clone(), mongodb_database: system.database.clone() };
    let fresh = process::open(&redis, &mongodb).await.expect("both are URLs");
    let eraser = Eraser::new(fresh.partitions.clone(), fresh.ledger.clone(), fresh.database.clone());
    let outcome = eraser.erase(&deletion, at(10)).await.expect("an answer");
    assert_eq!(outcome, EraseOutcome::Again);
    let decision = system.backends.ledger.decisions(&[id]).await.expect("a look").remove(&id);
    let decision = decision.expect("it is decided").expect("it can be read");
    assert_eq!(decision.user.as_str(), USER, "renamed before Redis knew the pseudonym");
    system.audited_clean().await;
    assert_eq!(eraser.erase(&deletion, at(10)).await.expect("an answer"), EraseOutcome::Done);
    system.audited_clean().await;
}
