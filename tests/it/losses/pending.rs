//! A rebuild counts decided but unsettled issuances once, and reserves their units for no other.

use coupon_system::issuance::settle::{Settled, settle};

use super::busy::BusyQueue;
use super::rebuild;
use crate::helpers::System;

#[tokio::test]
async fn what_was_decided_and_not_settled_is_counted_once_and_not_delivered_again() {
    let system = System::start().await;
    system.leaves_in_flight();
    let busy = BusyQueue::make(&system, "c").await;
    let before = system.stock(&busy.coupon).await;
    assert_eq!((before.remaining, before.reserved, before.issued), (3, 7, 2));
    let old = system.keys();
    let decided = system.decider().decide(&old, &busy.decided).await.expect("adopted").settlements;

    rebuild(&system).await;
    let after = system.stock(&busy.coupon).await;
    assert_eq!((after.remaining, after.reserved, after.issued), (4, 4, 4), "the rejected unit is free again");
    assert_eq!(system.queue().await, (4, 1), "three to decide, and a dead letter in its consumer's hands");
    let delivered = system.take_entries().await;
    let ids: Vec<_> = delivered.iter().map(|entry| entry.id).collect();
    assert_eq!(ids, busy.undecided, "in the order in which they were accepted");

    let late = settle(system.partition(), &old, &decided).await.expect("an answer");
    assert_eq!(late, [Settled::AnotherEpoch; 2]);
    assert_eq!(system.stock(&busy.coupon).await, after);
    // The rejected user requests again, and gets the unit that was given back, or another.
    let again = system.accepted("u4", &busy.coupon).await;
    assert_ne!(again, busy.rejected);
    assert_eq!(system.stock(&busy.coupon).await.remaining, 3);
    system.audited_clean().await;
}

#[tokio::test]
async fn a_rebuild_after_a_rebuild_changes_no_account() {
    let system = System::start().await;
    let busy = BusyQueue::make(&system, "c").await;
    rebuild(&system).await;
    let once = system.stock(&busy.coupon).await;
    rebuild(&system).await;
    assert_eq!(system.stock(&busy.coupon).await, once);
    busy.ends_well(&system, "rebuilt twice").await;
}
