//! Damage, late commits and dead letters among the moves of units: no unit is issued twice or lost for them, and nobody's
//! answer waits for what will not come.

use std::sync::Arc;
use std::time::Duration;

use coupon_system::audit::FindingKind;
use coupon_system::ids::{CouponId, PartitionId};
use coupon_system::queue::dead;
use coupon_system::recovery::{
    self, CertifyOutcome, ProgressCallback, RecoveryMode, RecoveryOutcome, RecoveryStep,
};
use jiff::Timestamp;
use mongodb::bson::{Document, doc};
use serde_json::json;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::losing::{Loss, lose, partition};
use super::{Mover, Step, adopted, create, requested, sells_out, shares_of, start, users_of};
use crate::helpers::{System, eventually};

const TOTAL: u32 = 12;
/// An answer that takes longer will never come.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// Whether somebody whom a share serves gets a unit, or is told that the coupon is sold out.
async fn gets_one(system: &System, coupon: &CouponId, share: PartitionId) -> bool {
    let user = users_of(system, coupon, share, 1).await;
    timeout(ANSWER_MAX, requested(system, &user[0], coupon)).await.expect("an answer that is not 503")
}

/// Sells a number of units to users of one share.
async fn sells(system: &System, coupon: &CouponId, share: PartitionId, units: usize) {
    for user in users_of(system, coupon, share, units).await {
        assert!(requested(system, &user, coupon).await);
    }
}

/// Repairs every share of a coupon.
async fn repaired(system: &System, coupon: &CouponId) -> Vec<FindingKind> {
    let record = system.backends.coupons.get(coupon).await.expect("a look").expect("its record");
    let mut repaired = Vec::new();
    for share in record.shares.partitions() {
        let auditor = system.auditor_of(system.backends.partitions.get(*share).expect("it is known"));
        let report = auditor.repair(std::slice::from_ref(&record), |_| {}).await.expect("an audit");
        repaired.extend(report.repaired.iter().map(|finding| finding.kind));
    }
    repaired
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_unit_was_moved_away_late_gets_one_of_another_share() {
    let system = start().await;
    let coupon = create(&system, "hot", TOTAL, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let mut mover = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
    lose(&system, shares[0], Loss::Wiped).await;
    system.load(&coupon).await;
    // The donor has forgotten that it lent two of its four units, and sells them all.
    assert_eq!(mover.goes_on(Step::Lent, Step::Committed).await, 2);
    sells(&system, &coupon, shares[0], 4).await;
    let _worker = system.worker();
    // Ten units are left for four people.
    eventually("all four have one", async || (system.issued_serials(&coupon).await.len() == 4).then_some(()))
        .await;
    adopted(&system, &coupon).await;
    sells_out(&system, &coupon, shares[0], TOTAL, TOTAL as usize - 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_committed_while_its_donor_is_rebuilt_has_arrived() {
    let system = start().await;
    let coupon = create(&system, "hot", TOTAL, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let mut mover = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
    let (ledger, decisions) = (system.backends.ledger.clone(), mover.decisions());
    let commits: ProgressCallback = Arc::new(move |step| {
        if matches!(step, RecoveryStep::Sorted { .. }) {
            let inserted = ledger.insert(&decisions);
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(inserted))
                .expect("an answer");
        }
    });
    let place = system.backends.partitions.iter().position(|one| one.id() == shares[0]).expect("it is known");
    let keeper = system.backends.recovery_supervisors().nth(place).expect("each has one");
    eventually("it is rebuilt", async || {
        let kept = keeper.recover(RecoveryMode::Rebuild, &commits, &CancellationToken::new()).await;
        let kept = kept.expect("it can be rebuilt");
        matches!(kept, CertifyOutcome::Recovered(RecoveryOutcome::Rebuilt { .. })).then_some(())
    })
    .await;
    mover.goes_on(Step::Committed, Step::Credited).await;
    system.audited_clean().await;
    let _worker = system.worker();
    sells(&system, &coupon, shares[2], TOTAL as usize).await;
    assert!(!gets_one(&system, &coupon, shares[0]).await);
    assert_eq!(system.settled(&coupon).await.issued, TOTAL);
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_whose_record_is_damaged_costs_its_unit_and_nothing_else() {
    let system = start().await;
    let coupon = create(&system, "hot", TOTAL, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let mut mover = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
    mover.goes_on(Step::Lent, Step::Committed).await;
    mover.goes_on(Step::Credited, Step::Settled).await;
    let ledger = system.backends.database.collection::<Document>("user_coupons");
    let damage = doc! {"$set": {"unit": "seven"}};
    ledger.update_one(doc! {"outcome": "moved"}, damage).await.expect("an answer");
    let _worker = system.worker();
    sells(&system, &coupon, shares[2], TOTAL as usize - 1).await;
    assert!(!gets_one(&system, &coupon, shares[2]).await);
    eventually("the others have one", async || {
        (system.issued_serials(&coupon).await.len() as u32 == TOTAL - 1).then_some(())
    })
    .await;
    let found: Vec<_> = system.audited().await.findings().map(|finding| finding.kind).collect();
    assert_eq!(found, [FindingKind::RecordUnreadable]);
    assert_eq!(repaired(&system, &coupon).await, [], "its unit may be sold where it went");
    assert_eq!(system.stock(&coupon).await.remaining, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_to_where_the_coupon_has_no_share_is_rejected() {
    let system = start().await;
    let coupon = create(&system, "hot", TOTAL, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let nowhere = system.backends.partitions.iter().map(|one| one.id());
    let nowhere = nowhere.skip(1).find(|one| !shares.contains(one)).expect("there are eight");
    drop(Mover::lends(&system, &coupon, shares[0], nowhere).await);
    let _worker = system.worker();
    eventually("the units are back", async || (system.stock(&coupon).await.remaining == TOTAL).then_some(()))
        .await;
    system.audited_clean().await;
    // A record that says so all the same is named.
    let ledger = system.backends.database.collection::<Document>("user_coupons");
    let mut mover = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
    mover.goes_on(Step::Lent, Step::Settled).await;
    let wrong = doc! {"$set": {"to": i32::from(nowhere.number())}};
    ledger.update_one(doc! {"outcome": "moved"}, wrong).await.expect("an answer");
    let found: Vec<_> = system.audited().await.findings().map(|finding| finding.kind).collect();
    assert!(found.contains(&FindingKind::RecordUnreadable), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_among_the_free_units_and_is_none_of_the_share_is_not_sold_and_keeps_nobody_waiting() {
    let system = start().await;
    let coupon = create(&system, "hot", 3, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let _worker = system.worker();
    sells(&system, &coupon, shares[2], 3).await;
    assert_eq!(system.settled(&coupon).await.issued, 3);
    let free = partition(&system, shares[1]).keys().free(&coupon);
    for wrong in ["nonsense", "1"] {
        let _: u64 = system.command(&["SADD", &free, wrong]).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(!gets_one(&system, &coupon, shares[2]).await, "{wrong}");
        assert!(!gets_one(&system, &coupon, shares[0]).await, "{wrong}");
        assert_eq!(system.issued_serials(&coupon).await, [1, 2, 3]);
        let _: u64 = system.command(&["SREM", &free, wrong]).await;
    }
    system.leaves_in_flight();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_a_dead_letter_is_not_waited_for() {
    let system = start().await;
    let coupon = create(&system, "hot", 2, 2, 1).await;
    let shares = shares_of(&system, &coupon).await;
    sells(&system, &coupon, shares[1], 1).await;
    let mover = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
    let (donor, keys, lent) = (mover.donor, mover.keys.clone(), mover.lent[0].clone());
    assert!(dead::set_aside(donor, &keys, &lent.entry, lent.decision.id, 3, "why").await.expect("an answer"));
    assert!(!gets_one(&system, &coupon, shares[0]).await, "one is sold, and one waits for an operator");
    dead::discard(donor, &system.backends.ledger, lent.decision.id).await.expect("it is discarded");
    let _worker = system.worker();
    eventually("it is free again", async || gets_one(&system, &coupon, shares[1]).await.then_some(())).await;
    assert!(!gets_one(&system, &coupon, shares[0]).await);
    assert_eq!(system.settled(&coupon).await.issued, 2);
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_all_are_empty_is_forgotten_when_the_clock_is_set_back() {
    let system = start().await;
    let coupon = create(&system, "hot", 4, 2, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let _worker = system.worker();
    sells(&system, &coupon, shares[0], 2).await;
    let in_an_hour = (Timestamp::now().as_millisecond() + 3_600_000).to_string();
    let key = partition(&system, shares[0]).keys().coupon(&coupon);
    let _: u64 = system.command(&["HSET", &key, "drained_until", &in_an_hour]).await;
    assert!(gets_one(&system, &coupon, shares[0]).await);
    assert!(gets_one(&system, &coupon, shares[0]).await);
    assert!(!gets_one(&system, &coupon, shares[0]).await);
    assert_eq!(system.settled(&coupon).await.issued, 4);
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_final_count_of_a_coupon_is_that_of_all_its_shares() {
    let system = start().await;
    let coupon = create(&system, "hot", TOTAL, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let _worker = system.worker();
    for share in &shares {
        sells(&system, &coupon, *share, 2).await;
    }
    system.settled(&coupon).await;
    let archived = system.client.post("/coupons/hot/archive", json!({})).await;
    assert_eq!(archived.status, 200, "{archived:?}");
    for share in &shares {
        let retired =
            recovery::retire(partition(&system, *share), &system.backends.coupons, Duration::ZERO).await;
        assert_eq!(retired.expect("a look"), std::slice::from_ref(&coupon));
    }
    let issued = async || system.client.get("/coupons/hot").await.body["stock"]["issued"].clone();
    assert_eq!(issued().await, json!(6));
    system.audited_clean().await;
    assert_eq!(repaired(&system, &coupon).await, []);
    let record = system.backends.coupons.get(&coupon).await.expect("a look").expect("a record");
    let kept = system.backends.coupons.final_counts(&[&record]).await.expect("a look");
    assert_eq!(kept.get(&coupon), Some(&6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_that_is_counted_as_on_its_way_after_it_left_is_found_and_counted_no_more() {
    let system = start().await;
    let coupon = create(&system, "hot", 3, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let _worker = system.worker();
    let mut mover = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
    assert_eq!(mover.goes_on(Step::Lent, Step::Settled).await, 1);
    sells(&system, &coupon, shares[1], 3).await;
    system.settled(&coupon).await;
    let (donor, lent) = (partition(&system, shares[0]), &mover.lent[0].decision);
    let mut count = redis::cmd("HSET");
    count.arg(donor.keys().holders(&coupon)).arg(lent.user.as_str()).arg(lent.id.as_bytes().as_slice());
    count.query_async::<()>(&mut donor.connection()).await.expect("it is counted");
    let found: Vec<_> = system.audited().await.findings().map(|finding| finding.kind).collect();
    assert_eq!(found, [FindingKind::LendingCounted]);
    assert_eq!(repaired(&system, &coupon).await, [FindingKind::LendingCounted]);
    assert!(!gets_one(&system, &coupon, shares[0]).await);
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_that_is_free_where_it_was_moved_away_is_found_and_taken() {
    let system = start().await;
    let coupon = create(&system, "hot", 6, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let mut mover = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
    assert_eq!(mover.goes_on(Step::Lent, Step::Settled).await, 1);
    let free = partition(&system, shares[0]).keys().free(&coupon);
    let _: u64 = system.command(&["SADD", &free, "1"]).await;
    let found: Vec<_> = system.audited().await.findings().map(|finding| finding.kind).collect();
    assert_eq!(found, [FindingKind::SerialFreeAndIssued]);
    assert_eq!(adopted(&system, &coupon).await, 1);
    system.audited_clean().await;
    let _worker = system.worker();
    sells_out(&system, &coupon, shares[2], 6, 6).await;
}
