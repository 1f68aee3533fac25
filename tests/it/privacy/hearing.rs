//! When a process learns of a deletion, and what it does while it cannot.

use std::sync::Arc;
use std::time::Duration;

use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::issuance::Lookup;
use coupon_system::privacy::{DeletionWatcher, EraseOutcome, Eraser};
use coupon_system::user::{MarkDeletedOutcome, PendingDeletions, RegisteredUsers};
use futures::TryStreamExt;
use mongodb::bson::{DateTime, Document, doc};
use mongodb::options::ReadConcern;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{delete, gone, traces};
use crate::helpers::{System, at, eventually, fail, obedient_mongodb};

const USER: &str = "unheard-user";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_remembered_before_the_first_word_of_deletions_is_not_trusted_after_it() {
    let mut system = System::start().await;
    system.users(USER, 1).await;
    system.stop().await;
    let backends = &system.backends;
    let user = format!("{USER}0").parse().expect("an id");
    let deletions = Arc::new(PendingDeletions::new(Duration::from_millis(400)));
    let registered = RegisteredUsers::start(backends.users.clone(), Arc::clone(&deletions), 10);
    assert!(registered.find(&user).await.expect("an answer").is_some());

    // This process cannot reach MongoDB; others can.
    let marked = backends.users.mark_deleted(&user, Duration::ZERO, false).await.expect("an answer");
    let MarkDeletedOutcome::As(deletion) = marked else { panic!("the user is registered") };
    let eraser = Eraser::new(backends.partitions.clone(), backends.ledger.clone(), backends.database.clone());
    assert_eq!(eraser.erase(&deletion, at(10)).await.expect("an answer"), EraseOutcome::Done);
    eventually("it has not heard for long", async || (!deletions.is_fresh()).then_some(())).await;

    let lookup = Lookup::start(&backends.partitions, backends.ledger.clone(), Arc::clone(&deletions), 10);
    let learner = DeletionWatcher {
        users: backends.users.clone(),
        deletions: Arc::clone(&deletions),
        registered: Some(registered.clone()),
        lookup,
        due: Arc::default(),
    };
    let stop = CancellationToken::new();
    let learning = tokio::spawn(learner.run(stop.clone()));
    eventually("it hears of deletions", async || deletions.is_fresh().then_some(())).await;
    assert!(registered.find(&user).await.expect("an answer").is_none());
    stop.cancel();
    learning.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_for_its_coupon_longer_than_a_deletion_takes_is_refused() {
    let (mongodb, _folder) = obedient_mongodb().await;
    let system =
        System::builder().mongodb(mongodb.url()).flags(&["--user-deletion-delay", "1"]).start().await;
    assert_eq!(system.client.post("/users", json!({"id": USER})).await.status, 201);
    // Only MongoDB has it.
    system.coupon_record("c", 10, 1, at(-60), at(3_600)).await;
    let coupons = format!("{}.coupons", system.database);
    let slow = doc! {
        "failCommands": ["find"], "namespace": &coupons, "blockConnection": true, "blockTimeMS": 4_000,
    };
    fail(&system, "alwaysOn", slow).await;
    let client = system.client.clone();
    let requested = tokio::spawn(async move { client.issue(USER, "c", None).await });
    let admin = system.backends.database.client().database("admin");
    eventually("it asks for the coupon", async || {
        let asked = doc! {"$match": {"command.find": "coupons", "command.filter._id": "c"}};
        let now = admin.aggregate([doc! {"$currentOp": {}}, asked]).read_concern(ReadConcern::local());
        let now = now.await.expect("a look");
        let now: Vec<Document> = now.try_collect().await.expect("operations");
        (!now.is_empty()).then_some(())
    })
    .await;
    assert_eq!(delete(&system, USER).await.status, 202);
    gone(&system, USER).await;
    assert!(!requested.is_finished());
    fail(&system, "off", doc! {}).await;
    let answer = requested.await.expect("no panic");
    assert_eq!((answer.status, answer.code()), (404, "user-not-found"), "{answer:?}");
    assert_eq!(traces(&system, USER).await, Vec::<String>::new());
}

#[tokio::test]
async fn who_is_no_user_is_not_remembered_for_having_been_asked_for_in_the_wrong_way() {
    let system = System::start().await;
    let id = IssuanceId::generate(PartitionId::ONE);
    for body in [json!({}), json!({"reference": "a b"}), json!("nothing"), json!({"reference": "o1"})] {
        let answer = system.client.post(&format!("/user-coupons/{USER}/{id}/use"), body).await;
        assert!((400..500).contains(&answer.status), "{answer:?}");
    }
    assert_eq!(traces(&system, USER).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletions_that_must_wait_keep_no_other_waiting() {
    /// As many as one round carries out.
    const WAITING: usize = 1_000;
    let system = System::builder().flags(&["--user-deletion-delay", "1"]).start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    let in_flight = system.accepted("somebody", &coupon).await;
    // According to Redis, each of them has an issuance in flight.
    let mut command = redis::cmd("HSET");
    command.arg(system.keys().holders(&coupon));
    let long_ago = DateTime::from_millis(at(-3_600).as_millisecond());
    let waiting = (0..WAITING).map(|number| {
        command.arg(format!("w{number}")).arg(in_flight.as_bytes().as_slice());
        let pseudonym = format!("deleted:w{number}");
        doc! {
            "_id": format!("w{number}"), "name": &pseudonym, "createdAt": long_ago, "pseudonym": pseudonym,
            "deletedAt": long_ago, "dueAt": long_ago,
        }
    });
    let waiting: Vec<Document> = waiting.collect();
    let planted: redis::RedisResult<u64> = command.query_async(&mut system.partition().connection()).await;
    planted.expect("they are counted");
    let users = system.backends.database.collection::<Document>("users");
    users.insert_many(waiting).await.expect("they are marked");

    assert_eq!(system.client.post("/users", json!({"id": USER})).await.status, 201);
    assert_eq!(delete(&system, USER).await.status, 202);
    gone(&system, USER).await;
    let left = users.count_documents(doc! {"deletedAt": {"$exists": true}}).await.expect("a count");
    assert_eq!(left as usize, WAITING);
}
