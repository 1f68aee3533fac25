//! An issuance is decided once and settled once, and its unit is given back once.

use std::sync::Arc;

use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::issuance::settle::{Settled, settle};
use coupon_system::issuance::{Outcome, Reason};
use coupon_system::queue::Entry;
use futures::future::join_all;
use tokio::sync::Barrier;

use crate::helpers::{System, decision, native};

/// A record that another user holds this unit, as a worker leaves it that slept through a rebuild.
async fn taken_by_another(system: &System, entry: &Entry, user: &str, serial: u32) {
    let mut record = decision(entry, Outcome::Issued { unit: native(serial), nth: 1 });
    record.id = IssuanceId::generate(PartitionId::ONE);
    record.user = user.parse().expect("an id");
    system.write(&[record]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_unit_is_given_back_once_though_two_workers_race_and_goes_to_somebody_else() {
    let system = System::start().await;
    system.users("u", 2).await;
    for round in 0..10 {
        let coupon = system.coupon(&format!("c{round}"), 1, 1).await;
        let id = system.accepted("u0", &coupon).await;
        let entries = Arc::new(system.take_entries().await);
        let rejected = Outcome::Rejected { reason: Reason::Discarded, unit: Some(native(1)), lost: false };
        system.backends.ledger.insert(&[decision(&entries[0], rejected)]).await.expect("it is written");

        let barrier = Arc::new(Barrier::new(2));
        let racing = (0..2).map(|_| {
            let (decider, keys) = (system.decider(), system.keys());
            let (entries, barrier) = (Arc::clone(&entries), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                decider.process(&keys, &entries).await
            })
        });
        for processed in join_all(racing).await {
            processed.expect("no panic").expect("it is settled");
        }
        let stock = system.stock(&coupon).await;
        assert_eq!((stock.remaining, stock.reserved, stock.issued), (1, 0, 0), "round {round}");
        assert!(!system.is_in_flight(id).await);
        assert_eq!(system.queue().await, (0, 0));

        let next = system.accepted("u1", &coupon).await;
        let entries = system.take_entries().await;
        assert_eq!(entries[0].unit, Some(native(1)), "it is the unit that was given back");
        system.decider().process(&system.keys(), &entries).await.expect("it is decided");
        let held = system.backends.ledger.holder_of(&coupon, native(1)).await.expect("a read");
        let held = held.expect("somebody").expect("it is readable");
        assert_eq!((held.id, held.user.as_str()), (next, "u1"));
    }
}

#[tokio::test]
async fn of_two_deciders_with_the_same_entry_one_decides_and_the_other_adopts() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let id = system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    let first = system.decider().decide(&system.keys(), &entries).await.expect("decided").settlements;
    let second = system.decider().decide(&system.keys(), &entries).await.expect("decided").settlements;
    assert_eq!(first, second);
    assert_eq!(first[0].decision.id, id);
    let keys = system.keys();
    assert_eq!(settle(system.partition(), &keys, &first).await.expect("an answer"), [Settled::Now]);
    assert_eq!(settle(system.partition(), &keys, &second).await.expect("an answer"), [Settled::GuardedOff]);
    assert_eq!(system.stock(&coupon).await.issued, 1);
}

#[tokio::test]
async fn a_unit_that_another_record_holds_is_replaced_by_a_fresh_one_and_never_given_back() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3, 1).await;
    system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    taken_by_another(&system, &entries[0], "ghost", 1).await;
    system.decider().process(&system.keys(), &entries).await.expect("it is decided");
    assert_eq!(system.issued_serials(&coupon).await, [1, 2]);
    let stock = system.stock(&coupon).await;
    assert_eq!(stock.remaining, 1, "unit 1 is the ghost's, unit 2 is u0's");
    assert_eq!(system.queue().await, (0, 0));
}

#[tokio::test]
async fn a_unit_that_another_record_holds_rejects_its_request_as_sold_out_when_no_other_is_free() {
    let system = System::start().await;
    let coupon = system.coupon("c", 1, 1).await;
    let id = system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    taken_by_another(&system, &entries[0], "ghost", 1).await;
    system.decider().process(&system.keys(), &entries).await.expect("it is decided");
    let polled = system.client.get(&format!("/issuances/{id}")).await;
    assert_eq!((polled.state(), polled.body["problem"]["code"].as_str()), ("rejected", Some("sold-out")));
    assert_eq!(system.stock(&coupon).await.remaining, 0, "the unit is lost, not given back");
    assert_eq!(system.issued_serials(&coupon).await, [1]);
}

#[tokio::test]
async fn of_two_workers_that_meet_a_taken_unit_one_reassigns_and_both_end_with_its_choice() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    taken_by_another(&system, &entries[0], "ghost", 1).await;
    let (keys, one, two) = (system.keys(), system.decider(), system.decider());
    let (first, second) = tokio::join!(one.process(&keys, &entries), two.process(&keys, &entries));
    first.expect("it is decided");
    second.expect("it is decided");
    assert_eq!(system.issued_serials(&coupon).await, [1, 2]);
    assert_eq!(system.stock(&coupon).await.remaining, 3, "one fresh unit was taken, not two");
}

#[tokio::test]
async fn a_user_who_holds_the_limit_by_the_ledger_is_rejected_and_the_unit_goes_back() {
    let system = System::start().await;
    system.users("u", 1).await;
    let coupon = system.coupon("c", 5, 1).await;
    let id = system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    taken_by_another(&system, &entries[0], "u0", 4).await;
    system.decider().process(&system.keys(), &entries).await.expect("it is decided");
    let polled = system.client.get(&format!("/issuances/{id}")).await;
    assert_eq!(
        (polled.state(), polled.body["problem"]["code"].as_str()),
        ("rejected", Some("already-issued"))
    );
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (4, 0, 1), "what they hold is counted too");
    // Dedupe knows it: otherwise each further request would be accepted and rejected again.
    let again = system.client.issue("u0", "c", None).await;
    assert_eq!((again.status, again.code()), (409, "already-issued"));
    assert_eq!(again.body["userCoupons"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_users_nth_that_is_taken_is_replaced_by_the_next_within_the_limit() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 2).await;
    system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    taken_by_another(&system, &entries[0], "u0", 4).await;
    system.decider().process(&system.keys(), &entries).await.expect("it is decided");
    let user = "u0".parse().expect("an id");
    let held = system.backends.ledger.held_by(&coupon, &user).await.expect("a read");
    let mut held: Vec<_> = held.into_iter().map(|held| held.expect("it is readable")).collect();
    held.sort_by_key(|held| held.nth);
    assert_eq!(held.iter().map(|held| (held.nth, held.unit.serial())).collect::<Vec<_>>(), [(1, 4), (2, 1)]);
}

#[tokio::test]
async fn a_serial_beyond_the_total_is_refused_and_replaced() {
    let system = System::start().await;
    let coupon = system.coupon("c", 2, 1).await;
    let id = system.accepted("u0", &coupon).await;
    // As if Redis knew of more units than the record has.
    let (keys, mut connection) = (system.keys(), system.partition().connection());
    let value: String = redis::cmd("HGET")
        .arg(keys.in_flight())
        .arg(id.as_bytes().as_slice())
        .query_async(&mut connection)
        .await
        .expect("it is in flight");
    let damaged = value.replacen(" 1 1 ", " 9 1 ", 1);
    assert_ne!(damaged, value);
    let set: redis::RedisResult<()> = redis::cmd("HSET")
        .arg(keys.in_flight())
        .arg(id.as_bytes().as_slice())
        .arg(damaged)
        .query_async(&mut connection)
        .await;
    set.expect("it is set");
    let mut entries = system.take_entries().await;
    entries[0].unit = Some(native(9));
    system.decider().process(&keys, &entries).await.expect("it is decided");
    assert_eq!(system.issued_serials(&coupon).await, [2]);
}

#[tokio::test]
async fn an_id_that_was_rejected_and_reserved_again_stays_rejected_and_leaks_no_unit() {
    let system = System::start().await;
    system.users("u", 2).await;
    let coupon = system.coupon("c", 3, 1).await;
    let first = system.client.issue("u0", "c", Some("k")).await;
    let id: IssuanceId = first.id().parse().expect("an id");
    let entries = system.take_entries().await;
    let rejected = Outcome::Rejected { reason: Reason::Discarded, unit: Some(native(1)), lost: false };
    system.backends.ledger.insert(&[decision(&entries[0], rejected)]).await.expect("it is written");
    system.decider().process(&system.keys(), &entries).await.expect("it is settled");
    // Redis forgets that the key was rejected; another user has its unit by now.
    let (keys, mut connection) = (system.keys(), system.partition().connection());
    let forgotten: redis::RedisResult<()> =
        redis::cmd("DEL").arg(keys.holders(&coupon)).query_async(&mut connection).await;
    forgotten.expect("it is forgotten");
    let other = system.accepted("u1", &coupon).await;
    let again = system.client.issue("u0", "c", Some("k")).await;
    assert_eq!((again.status, again.id()), (202, first.id()));
    let entries = system.take_entries().await;
    assert_eq!(entries.len(), 2);
    system.decider().process(&system.keys(), &entries).await.expect("it is settled");
    assert_eq!(system.client.get(&format!("/issuances/{id}")).await.state(), "rejected");
    assert_eq!(system.client.get(&format!("/issuances/{other}")).await.body["serial"], 1);
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (2, 0, 1));
}

#[tokio::test]
async fn a_damaged_in_flight_value_is_replaced_from_its_entry_and_settled_with_the_other_of_its_batch() {
    let system = System::start().await;
    system.users("u", 2).await;
    let coupon = system.coupon("c", 2, 1).await;
    let ids = [system.accepted("u0", &coupon).await, system.accepted("u1", &coupon).await];
    let entries = system.take_entries().await;
    // The entry and the unit are right; user and coupon are lost.
    let damaged = format!("{} 1 1", entries[0].entry);
    let mut connection = system.partition().connection();
    let mut change = redis::cmd("HSET");
    change.arg(system.keys().in_flight()).arg(ids[0].as_bytes().as_slice()).arg(&damaged);
    let () = change.query_async(&mut connection).await.expect("it is changed");

    system.decider().process(&system.keys(), &entries).await.expect("both are decided");
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (0, 0, 2));
    assert!(!system.is_in_flight(ids[0]).await);
    assert_eq!(system.queue().await, (0, 0));
    assert_eq!(system.issued_serials(&coupon).await, [1, 2]);
    system.audited_clean().await;
}
