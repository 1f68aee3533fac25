//! Deletions as an operator asks for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coupon_system::dev::servers::{MongoOptions, MongoServer};
use coupon_system::queue::dead;
use coupon_system::recovery;
use coupon_system::user::{User, UserStore};
use mongodb::bson::{Document, doc};
use serde_json::json;

use super::{delete, gone, traces};
use crate::helpers::{
    API, Client, NotFound, RequestTally, System, accounts_hold, at, eventually, program, recovered, rush,
    serving,
};

const USER: &str = "victim-7f3a@example.com";

/// A short delay, but still twice the time for which a process may miss deletions.
const DELAY: &[&str] = &["--user-deletion-delay", "2"];

async fn register(system: &System, user: &str) {
    assert_eq!(system.client.post("/users", json!({"id": user})).await.status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_deleted_while_others_rush_and_leaves_no_trace_and_the_accounts_hold() {
    let system = System::builder().flags(DELAY).start().await;
    register(&system, USER).await;
    let crowd = system.users("u", 400).await;
    let rushed = system.coupon("c", 200, 1).await;
    let several = system.coupon("several", 10, 3).await;
    let over = system.coupon("over", 5, 1).await;
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0"]).args(DELAY);
    let (_other, address) = serving(api).await;
    let other = Client::new(address);

    // One issuance will be rejected: workers set it aside, and an operator discards it later.
    let entry = {
        other.issue(USER, "several", Some("discarded")).await.id();
        system.take_entries().await.remove(0)
    };
    let (partition, keys) = (system.partition(), system.keys());
    assert!(dead::set_aside(partition, &keys, &entry.entry, entry.id, 3, "why").await.expect("set aside"));

    // Others are issued, used and revoked, of a coupon that is no longer in Redis.
    system.worker();
    let mut held = Vec::new();
    for (coupon, key) in [("c", None), ("several", Some("k1")), ("several", Some("k2")), ("over", Some("k3"))]
    {
        let id = other.issue(USER, coupon, key).await.id();
        held.push(other.decided(&id).await.body["userCoupon"].as_str().expect("a link").to_owned());
    }
    let reference = json!({"reference": format!("order-of-{USER}")});
    assert_eq!(system.client.post(&format!("{}/use", held[1]), reference).await.status, 200);
    assert_eq!(system.client.post(&format!("{}/revoke", held[2]), json!({})).await.status, 200);
    system.end(&over).await;
    eventually("it is retired", async || {
        let retired = recovery::retire(system.partition(), &system.backends.coupons, Duration::ZERO)
            .await
            .expect("a look");
        retired.contains(&over).then_some(())
    })
    .await;
    assert!(traces(&system, USER).await.len() > 5);

    let tally = Arc::new(RequestTally::default());
    let others = rush(&system, crowd, &tally, NotFound::IsAFault);
    let asked = Instant::now();
    let answer = delete(&system, USER).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let deleted = Instant::now();
    // However late these come on a busy machine, the deletion is not carried out: it waits for what is in flight.
    let again = delete(&system, USER).await;
    assert_eq!((again.status, &again.body), (202, &answer.body));
    assert_eq!(system.client.get(&format!("/users/{USER}")).await.code(), "user-not-found");
    assert_eq!(system.client.post("/users", json!({"id": USER})).await.code(), "user-exists");
    // The other process has cached the user, and learns of the deletion soon enough: what is sent once it is due is
    // not taken for theirs.
    eventually("nobody accepts anything of the user", async || {
        let is_due = deleted.elapsed() >= Duration::from_secs(2);
        let answer = other.issue(USER, "several", Some("k1")).await;
        assert!(!(is_due && answer.status < 300), "{answer:?}");
        (answer.code() == "user-not-found").then_some(())
    })
    .await;
    dead::discard(partition, &system.backends.ledger, entry.id).await.expect("discarded");
    gone(&system, USER).await;
    assert!(asked.elapsed() >= Duration::from_secs(2), "not before it was due");
    assert_eq!(others.await.expect("no panic").len(), 199);

    assert_eq!(traces(&system, USER).await, Vec::<String>::new());
    for coupon in [&rushed, &several] {
        accounts_hold(&system, coupon).await;
    }
    let records = system.backends.database.collection::<Document>("user_coupons");
    let renamed = doc! {"userId": {"$regex": "^deleted:"}};
    assert_eq!(records.count_documents(renamed).await.expect("a count"), 5);
    assert_eq!(delete(&system, USER).await.code(), "user-not-found");

    // No process remembers the user: it answers polls with what the ledger has now.
    let id = held[1].rsplit('/').next().expect("an id");
    for client in [&system.client, &other] {
        let shown = eventually("it is forgotten", async || {
            let shown = client.get(&format!("/issuances/{id}")).await;
            (!shown.body.to_string().contains(USER)).then_some(shown)
        })
        .await;
        assert!(shown.body["userId"].as_str().is_some_and(|user| user.starts_with("deleted:")), "{shown:?}");
        let kept = client.get(shown.body["userCoupon"].as_str().expect("a link")).await;
        assert_eq!((&kept.body["status"], &kept.body["reference"]), (&json!("used"), &json!(null)));
        assert_eq!(kept.body["history"][1]["event"], "used");
    }

    // A rebuild finds nothing else.
    let _: u64 = system.command(&["DEL", &system.keys().certificate()]).await;
    recovered(&system).await;
    assert_eq!(traces(&system, USER).await, Vec::<String>::new());
    system.audited_clean().await;
}

#[tokio::test]
async fn the_same_id_registered_anew_is_a_new_person() {
    let system = System::builder().flags(&["--user-deletion-delay", "1"]).start().await;
    let coupon = system.coupon("c", 10, 1).await;
    register(&system, USER).await;
    system.worker();
    let old = system.client.issue(USER, "c", Some("key")).await.id();
    system.client.decided(&old).await;
    assert_eq!(delete(&system, USER).await.status, 202);
    gone(&system, USER).await;

    register(&system, USER).await;
    assert_eq!(system.client.get(&format!("/user-coupons/{USER}")).await.body["items"], json!([]));
    for is_rebuilt in [false, true] {
        if is_rebuilt {
            let _: u64 = system.command(&["DEL", &system.keys().certificate()]).await;
            recovered(&system).await;
        }
        // The deleted user's key is new for the new user, and gives them a unit of their own, once.
        let fresh = eventually("it answers", async || {
            let answer = system.client.issue(USER, "c", Some("key")).await;
            (answer.status != 503).then_some(answer)
        })
        .await;
        assert!(fresh.id() != old, "{fresh:?}");
        assert_eq!(fresh.status, if is_rebuilt { 200 } else { 202 }, "{fresh:?}");
        assert_eq!(system.client.decided(&fresh.id()).await.state(), "issued");
    }
    assert_eq!(system.client.issue(USER, "c", None).await.code(), "already-issued");
    let stock = accounts_hold(&system, &coupon).await;
    assert_eq!((stock.issued, stock.remaining), (2, 8));
}

#[tokio::test]
async fn a_key_of_a_user_who_was_registered_by_an_older_version_is_used_up_when_they_are_deleted() {
    let system = System::builder().flags(&["--user-deletion-delay", "1"]).start().await;
    system.coupon("c", 10, 1).await;
    system.worker();
    // In one write: the API reads ahead who is registered, and would remember the secret of one who has it for a moment.
    let users = UserStore::new(&system.backends.database);
    let as_before = async || {
        let user = User { id: USER.parse().expect("an id"), name: USER.into(), created_at: at(0) };
        assert_eq!(users.insert(&[user]).await.expect("an answer"), [true]);
    };
    as_before().await;
    let old = system.client.issue(USER, "c", Some("key")).await.id();
    system.client.decided(&old).await;
    assert_eq!(delete(&system, USER).await.status, 202);
    gone(&system, USER).await;
    as_before().await;
    // The deleted user's key gives the new user neither the old unit nor another one.
    let replayed = system.client.issue(USER, "c", Some("key")).await;
    assert_eq!((replayed.status, replayed.code()), (409, "discarded"), "{replayed:?}");
}

#[tokio::test]
async fn a_deletion_waits_for_what_is_in_flight() {
    let system = System::builder().flags(&["--user-deletion-delay", "1"]).start().await;
    let coupon = system.coupon("c", 10, 1).await;
    register(&system, USER).await;
    let id = system.client.issue(USER, "c", None).await.id();
    let entries = system.take_entries().await;
    let keys = system.keys();
    let set_aside =
        dead::set_aside(system.partition(), &keys, &entries[0].entry, entries[0].id, 3, "why").await;
    assert!(set_aside.expect("an answer"));
    assert_eq!(delete(&system, USER).await.status, 202);
    let (deletions, _) = system.backends.users.deletions().await.expect("a look");
    eventually("it is due", async || {
        let (_, now) = system.backends.users.deletions().await.expect("a look");
        (now >= deletions[0].due).then_some(())
    })
    .await;
    let eraser = coupon_system::privacy::Eraser::new(
        system.backends.partitions.clone(),
        system.backends.ledger.clone(),
        system.backends.database.clone(),
    );
    let erased = eraser.erase(&deletions[0], at(10)).await.expect("an answer");
    assert_eq!(erased, coupon_system::privacy::EraseOutcome::InFlight);
    assert!(!traces(&system, USER).await.is_empty());
    assert_eq!(system.client.get(&format!("/issuances/{id}")).await.state(), "queued");

    let discarded = system.client.post(&format!("/dead-letters/{id}/discard"), json!({})).await;
    assert_eq!(discarded.status, 200, "{discarded:?}");
    gone(&system, USER).await;
    assert_eq!(traces(&system, USER).await, Vec::<String>::new());
    accounts_hold(&system, &coupon).await;
}

#[tokio::test]
async fn who_is_unknown_cannot_be_deleted_and_nobody_can_be_called_as_the_deleted_are() {
    let system = System::start().await;
    for unknown in ["nobody", "deleted:abc", "%24ne", "x%2Fy"] {
        let answer = delete(&system, unknown).await;
        assert_eq!((answer.status, answer.code()), (404, "user-not-found"), "{unknown}");
    }
    let answer = system.client.post("/users", json!({"id": "deleted:abc"})).await;
    assert_eq!((answer.status, answer.body["errors"][0]["pointer"].as_str()), (422, Some("#/id")));
}

#[tokio::test]
async fn where_ids_are_trusted_a_user_who_was_never_registered_can_be_deleted() {
    let flags = ["--require-registered-users", "false", "--user-deletion-delay", "1"];
    let system = System::builder().flags(&flags).start().await;
    let coupon = system.coupon("c", 10, 1).await;
    system.worker();
    let id = system.client.issue(USER, "c", None).await.id();
    system.client.decided(&id).await;
    assert_eq!(delete(&system, "nobody").await.code(), "user-not-found");
    assert_eq!(delete(&system, USER).await.status, 202);
    eventually("it is heard of", async || {
        (system.client.issue(USER, "c", None).await.code() == "user-not-found").then_some(())
    })
    .await;
    gone(&system, USER).await;
    assert_eq!(traces(&system, USER).await, Vec::<String>::new());
    accounts_hold(&system, &coupon).await;
}

#[tokio::test]
async fn an_api_that_cannot_hear_of_deletions_stops_trusting_what_it_remembers() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut mongodb =
        MongoServer::start(MongoOptions::new(folder.path().join("mongodb"))).await.expect("it starts");
    let system = System::builder().mongodb(mongodb.url()).flags(DELAY).start().await;
    system.leaves_in_flight();
    system.coupon("c", 10, 1).await;
    system.coupon("d", 10, 1).await;
    register(&system, USER).await;
    assert_eq!(system.client.issue(USER, "c", None).await.status, 202);
    mongodb.pause().await.expect("it is paused");
    eventually("it says that it cannot know", async || {
        let answer = system.client.issue(USER, "d", Some("k")).await;
        assert!(matches!(answer.status, 202 | 429 | 503), "{answer:?}");
        (answer.code() == "unavailable").then_some(())
    })
    .await;
    mongodb.resume().expect("it goes on");
    eventually("it trusts again", async || {
        let answer = system.client.issue(USER, "d", Some("k")).await;
        (answer.status == 202).then_some(())
    })
    .await;
}
