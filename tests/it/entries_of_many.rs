//! One stream entry holds all that one call accepts, and still each issuance is alone: what is wrong with one
//! concerns none of those that it shares its entry with.

use coupon_system::issuance::reserve::{QueueEntries, Reserved, reserve};
use coupon_system::issuance::{InFlight, Outcome};
use coupon_system::queue::{dead, figures, split};
use coupon_system::recovery::{CertifyOutcome, Deployment, RecoveryMode, RecoveryOutcome, ignore_progress};
use coupon_system::worker::BatchOutcome;
use futures::future::join_all;
use mongodb::bson::doc;
use tokio_util::sync::CancellationToken;

use crate::helpers::{NO_BACKLOG_MAX, System, decision, eventually, recovered, request};

/// Users of one entry.
const USERS: usize = 20;

fn users() -> impl Iterator<Item = String> {
    (0..USERS).map(|number| format!("u{number}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rush_through_the_api_is_queued_in_few_entries_and_settled_whole() {
    let system = System::start().await;
    let coupon = system.coupon("c", 1_000, 1).await;
    let users = system.users("u", 400).await;
    let answers = join_all(users.iter().map(|user| system.client.issue(user, "c", None))).await;
    assert!(answers.iter().all(|answer| answer.status == 202));
    let (length, _) = system.queue().await;
    assert!(length < 200, "{length} entries for 400 issuances");
    let backlog = figures(system.partition()).await.expect("the figures");
    assert_eq!((backlog.waiting(), backlog.length), (400, length));
    let worker = system.worker();
    assert_eq!(system.settled(&coupon).await.issued, 400);
    worker.cancel();
    assert_eq!(system.queue().await, (0, 0));
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_mongodb_refuses_becomes_a_dead_letter_alone_and_can_be_redriven() {
    let system = System::start().await;
    let coupon = system.coupon("c", 100, 1).await;
    let ids = system.accept_all(&coupon, users()).await;
    assert_eq!(system.queue().await, (1, 0));
    system.poison(Some("u7")).await;
    system.worker();
    eventually("all but one are issued", async || {
        let stock = system.stock(&coupon).await;
        (stock.issued as usize == USERS - 1).then_some(())
    })
    .await;
    let letter =
        eventually("it is set aside", async || dead::get(system.partition(), ids[7]).await.expect("a look"))
            .await;
    assert_eq!(letter.in_flight.expect("it is in flight").user.as_str(), "u7");
    assert_eq!(system.queue().await, (1, 1), "it has an entry of its own");
    system.audited_clean().await;
    system.poison(None).await;
    assert!(dead::redrive(system.partition(), ids[7]).await.expect("an answer"));
    assert_eq!(system.settled(&coupon).await.issued as usize, USERS);
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coupon_whose_record_cannot_be_read_holds_up_no_other_of_its_entries() {
    let system = System::start().await;
    let (good, bad) = (system.coupon("good", 100, 1).await, system.coupon("bad", 100, 1).await);
    let requests: Vec<_> = users().flat_map(|user| [(user.clone(), &good), (user, &bad)]).collect();
    system.accept_for(&requests).await;
    assert_eq!(system.queue().await, (1, 0));
    let records = system.backends.database.collection::<mongodb::bson::Document>("coupons");
    let total = |total: mongodb::bson::Bson| doc! {"$set": {"total": total}};
    records.update_one(doc! {"_id": "bad"}, total("many".into())).await.expect("it is damaged");
    system.worker();
    assert_eq!(system.settled(&good).await.issued as usize, USERS);
    records.update_one(doc! {"_id": "bad"}, total(100_i32.into())).await.expect("it is mended");
    assert_eq!(system.settled(&bad).await.issued as usize, USERS);
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_worker_left_of_an_entry_is_claimed_and_adopted() {
    let system = System::start().await;
    let coupon = system.coupon("c", 100, 1).await;
    system.accept_all(&coupon, users()).await;
    // It has decided some, settled none, and will never be heard of again.
    let entries = system.take_entries().await;
    let decisions: Vec<_> = entries[..7]
        .iter()
        .map(|entry| decision(entry, Outcome::Issued { unit: entry.unit.expect("a unit"), nth: 1 }))
        .collect();
    system.write(&decisions).await;
    system.worker();
    assert_eq!(system.settled(&coupon).await.issued as usize, USERS);
    assert_eq!(system.queue().await, (0, 0));
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_entry_that_is_settled_in_part_the_others_are_queued_by_themselves() {
    let system = System::start().await;
    let coupon = system.coupon("c", 100, 1).await;
    system.accept_all(&coupon, users()).await;
    let entries = system.take_entries().await;
    let (part, rest) = entries.split_at(5);
    let done = system.decider().process(&system.keys(), part).await.expect("they are decided");
    assert!(matches!(done, BatchOutcome::Here(left) if left.is_empty()));
    assert_eq!(
        system.queue().await,
        ((USERS - 5) as u64, 0),
        "each of the others has an entry, which nobody was given"
    );
    // Whoever still has them in hand settles nothing: they are in flight under other entries.
    let late = system.decider().process(&system.keys(), rest).await.expect("they are decided");
    let BatchOutcome::Here(left) = late else { panic!("{late:?}") };
    assert_eq!(left.len(), USERS - 5);
    assert_eq!(system.stock(&coupon).await.issued, 5);
    system.worker();
    assert_eq!(system.settled(&coupon).await.issued as usize, USERS);
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_in_flight_that_cannot_be_read_is_repaired_from_its_entry() {
    for damage in [&b"nonsense"[..], b"\xff\xfe 1", b""] {
        let system = System::start().await;
        let coupon = system.coupon("c", 100, 1).await;
        let ids = system.accept_all(&coupon, users()).await;
        let key = system.keys().in_flight();
        let mut command = redis::cmd("HSET");
        command.arg(key).arg(ids[3].as_bytes()).arg(damage);
        let _: u64 = command.query_async(&mut system.partition().connection()).await.expect("it is damaged");
        system.worker();
        assert_eq!(system.settled(&coupon).await.issued as usize, USERS, "{damage:?}");
        eventually("nothing is queued", async || (system.queue().await == (0, 0)).then_some(())).await;
        system.audited_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_was_trimmed_or_is_nobodys_is_queued_again() {
    let system = System::start().await;
    let coupon = system.coupon("c", 100, 1).await;
    system.accept_all(&coupon, users()).await;
    let _: u64 = system.command(&["XTRIM", &system.keys().stream(), "MAXLEN", "0"]).await;
    system.accept_all(&coupon, users().map(|user| format!("second-{user}"))).await;
    // A consumer is deleted with what it has.
    system.take_entries().await;
    let consumers: Vec<Vec<redis::Value>> =
        system.command(&["XINFO", "CONSUMERS", &system.keys().stream(), "workers"]).await;
    for consumer in consumers {
        let name: String = redis::from_redis_value(consumer[1].clone()).expect("a name");
        let _: u64 =
            system.command(&["XGROUP", "DELCONSUMER", &system.keys().stream(), "workers", &name]).await;
    }
    system.worker();
    assert_eq!(system.settled(&coupon).await.issued as usize, 2 * USERS);
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_takes_what_is_left_of_every_entry() {
    let system = System::start().await;
    let coupon = system.coupon("c", 100, 1).await;
    let ids = system.accept_all(&coupon, users()).await;
    // One is decided, one cannot be read, one is gone from what is in flight.
    let entries = system.take_entries().await;
    system
        .write(&[decision(&entries[0], Outcome::Issued { unit: entries[0].unit.expect("a unit"), nth: 1 })])
        .await;
    let key = system.keys().in_flight();
    let mut connection = system.partition().connection();
    let _: u64 = redis::cmd("HSET")
        .arg(&key)
        .arg(ids[1].as_bytes())
        .arg("nonsense")
        .query_async(&mut connection)
        .await
        .expect("it is damaged");
    let _: u64 = redis::cmd("HDEL")
        .arg(&key)
        .arg(ids[2].as_bytes())
        .query_async(&mut connection)
        .await
        .expect("it is gone");
    let supervisor = system.supervisor();
    eventually("it is rebuilt", async || {
        let kept =
            supervisor.recover(RecoveryMode::Rebuild, &ignore_progress(), &CancellationToken::new()).await;
        matches!(kept, Ok(CertifyOutcome::Recovered(RecoveryOutcome::Rebuilt { .. }))).then_some(())
    })
    .await;
    recovered(&system).await;
    system.worker();
    assert_eq!(system.settled(&coupon).await.issued as usize, USERS);
    system.audited_clean().await;
}

#[tokio::test]
async fn taking_an_entry_apart_changes_nothing_but_the_entries_and_may_be_repeated() {
    let system = System::start().await;
    let coupon = system.coupon("c", 100, 1).await;
    system.accept_all(&coupon, users()).await;
    let entries = system.take_entries().await;
    let entry = entries[0].entry.as_str();
    for expected in [USERS as u64, 0] {
        let count = split(system.partition(), &system.keys(), [entry]).await.expect("an answer");
        assert_eq!(count, expected);
    }
    let again = system.take_entries().await;
    let told = |entry: &coupon_system::queue::Entry| {
        (entry.id, entry.user.clone(), entry.unit, entry.nth, entry.accepted_at)
    };
    assert_eq!(again.iter().map(told).collect::<Vec<_>>(), entries.iter().map(told).collect::<Vec<_>>());
    assert!(again.iter().all(|entry| entry.of == 1));
    for entry in &again {
        let found = coupon_system::issuance::lookup::read_in_flight(system.partition(), &[entry.id]).await;
        let (held, _): (InFlight, _) =
            found.expect("a look").remove(0).expect("it can be read").expect("it is in flight");
        assert_eq!(held.entry, entry.entry);
    }
    system.audited_clean().await;
    system.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_of_an_older_version_queues_as_its_workers_can_read_until_its_upgrade_is_finished() {
    let system = System::start().await;
    let database = &system.backends.database;
    let reads = async || Deployment::read(database).await.expect("it is read").queue_entries;
    assert_eq!(reads().await, QueueEntries::OfMany, "it began with this version");
    let leases = database.collection::<mongodb::bson::Document>("recovery");
    leases.update_one(doc! {}, doc! {"$unset": {"entriesOfMany": ""}}).await.expect("it is an older one's");
    assert_eq!(reads().await, QueueEntries::OfOne);

    let coupon = system.coupon("c", 1_000, 1).await;
    let mut expected = 0;
    for (finished, prefix, length) in [(false, "old", USERS), (true, "new", USERS + 1)] {
        if finished {
            assert!(!Deployment::finish_upgrade(database).await.expect("it is finished"));
            assert!(Deployment::finish_upgrade(database).await.expect("it was before"));
        }
        let requests: Vec<_> = users().map(|user| request(&format!("{prefix}-{user}"), &coupon)).collect();
        let answers = reserve(system.partition(), &requests, NO_BACKLOG_MAX, reads().await).await;
        expected +=
            answers.expect("answers").iter().filter(|one| matches!(one, Reserved::Accepted(_))).count();
        assert_eq!(system.queue().await.0 as usize, length);
    }
    system.worker();
    assert_eq!(system.settled(&coupon).await.issued as usize, expected);
    assert_eq!(expected, 2 * USERS);
    system.audited_clean().await;
}
