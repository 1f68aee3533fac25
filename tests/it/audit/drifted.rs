//! Accounts that are wrong while every promise holds: the audit finds and repairs them.

use crate::helpers::native;
use coupon_system::audit::FindingKind;
use coupon_system::ids::{IssuanceId, PartitionId, Unit};
use coupon_system::issuance::{Outcome, Reason};

use super::AuditStage;

#[tokio::test]
async fn a_late_insert_is_found_and_adopted_and_its_unit_is_not_free_any_more() {
    let stage = AuditStage::start().await;
    let id = stage.late("late", 9, 1).await;
    stage.finds(FindingKind::RecordNotCounted, Some(9), &[id]).await;
    stage.is_mended().await;
    let stock = stage.system.stock(&stage.coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (11, 0, 9));
}

#[tokio::test]
async fn a_late_insert_far_above_the_next_unit_is_adopted_and_the_units_between_stay_free() {
    let stage = AuditStage::start().await;
    let id = stage.late("late", 15, 1).await;
    stage.finds(FindingKind::RecordNotCounted, Some(15), &[id]).await;
    stage.is_mended().await;
    assert_eq!(stage.system.stock(&stage.coupon).await.remaining, 11);
}

#[tokio::test]
async fn adopting_twice_changes_nothing() {
    let stage = AuditStage::start().await;
    stage.late("late", 9, 1).await;
    let findings: Vec<_> = stage.system.audited().await.findings().cloned().collect();
    let auditor = stage.system.auditor();
    assert_eq!(auditor.adopt(&stage.coupon, &findings).await.expect("an answer"), 1);
    let stock = stage.system.stock(&stage.coupon).await;
    assert_eq!(auditor.adopt(&stage.coupon, &findings).await.expect("an answer"), 0);
    assert_eq!(stage.system.stock(&stage.coupon).await, stock);
    stage.system.audited_clean().await;
}

#[tokio::test]
async fn a_unit_that_is_free_and_issued_is_taken_out_of_the_free_ones() {
    let stage = AuditStage::start().await;
    stage.change("SADD", &[stage.free_key().as_bytes(), b"3"]).await;
    stage.finds(FindingKind::SerialFreeAndIssued, Some(3), &[stage.issued[2]]).await;
    stage.is_mended().await;
}

#[tokio::test]
async fn a_counter_that_was_set_back_is_found_by_the_units_above_it() {
    let stage = AuditStage::start().await;
    let _: () = stage.redis("HSET", (stage.coupon_key(), "next", 6)).await;
    let report = stage.system.audited().await;
    let found: Vec<_> = report.findings().map(|found| (found.kind, found.unit.map(Unit::serial))).collect();
    for expected in [
        (FindingKind::SerialFreeAndIssued, Some(6)),
        (FindingKind::SerialFreeAndInFlight, Some(7)),
        (FindingKind::SerialFreeAndInFlight, Some(8)),
        (FindingKind::FreeUnknown, Some(9)),
    ] {
        assert!(found.contains(&expected), "{found:?}");
    }
    stage.is_mended().await;
}

#[tokio::test]
async fn a_unit_that_is_free_and_in_flight_is_taken_out_of_the_free_ones() {
    let stage = AuditStage::start().await;
    stage.change("SADD", &[stage.free_key().as_bytes(), b"7"]).await;
    stage.finds(FindingKind::SerialFreeAndInFlight, Some(7), &[stage.queued[0].id]).await;
    stage.is_mended().await;
}

/// Gives a queued issuance another unit in the in-flight hash.
async fn in_flight_with(stage: &AuditStage, place: usize, serial: u32) {
    let id = stage.queued[place].id;
    let key = stage.system.keys().in_flight();
    let value: String = stage.redis("HGET", (&key, id.as_bytes().as_slice())).await;
    let mut fields: Vec<_> = value.split(' ').map(str::to_owned).collect();
    fields[1] = serial.to_string();
    let _: i64 = stage.redis("HSET", (&key, id.as_bytes().as_slice(), fields.join(" "))).await;
}

#[tokio::test]
async fn of_two_requests_with_one_unit_the_later_one_gets_another() {
    let stage = AuditStage::start().await;
    in_flight_with(&stage, 1, 7).await;
    let report = stage.system.audited().await;
    let found: Vec<_> = report.findings().map(|found| (found.kind, found.unit.map(Unit::serial))).collect();
    // Unit 8 belonged to the later issuance.
    assert_eq!(found, [(FindingKind::SerialInFlightTwice, Some(7)), (FindingKind::SerialLeaked, Some(8))]);
    stage.is_mended().await;
}

#[tokio::test]
async fn a_request_with_an_issued_unit_gets_another() {
    let stage = AuditStage::start().await;
    in_flight_with(&stage, 1, 2).await;
    stage.change("SADD", &[stage.free_key().as_bytes(), b"8"]).await;
    stage.finds(FindingKind::SerialInFlightAndIssued, Some(2), &[stage.queued[1].id]).await;
    stage.is_mended().await;
}

#[tokio::test]
async fn a_leaked_unit_is_given_back() {
    let stage = AuditStage::start().await;
    stage.change("SREM", &[stage.free_key().as_bytes(), b"9"]).await;
    stage.finds(FindingKind::SerialLeaked, Some(9), &[]).await;
    stage.is_mended().await;
    assert_eq!(stage.system.stock(&stage.coupon).await.remaining, 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_repairs_at_once_give_a_leaked_unit_back_once() {
    let stage = AuditStage::start().await;
    stage.change("SREM", &[stage.free_key().as_bytes(), b"9"]).await;
    let (one, two) = tokio::join!(stage.repaired(), stage.repaired());
    let released =
        one.repaired.iter().chain(&two.repaired).filter(|found| found.kind == FindingKind::SerialLeaked);
    assert_eq!(released.count(), 1);
    stage.system.audited_clean().await;
}

/// Gives unit 9 back as a repair with this token does.
async fn release(stage: &AuditStage, token: &str, next: &str) -> String {
    let source = include_str!("../../../src/audit/repair/release.lua");
    let check = include_str!("../../../src/redis/lua/certificate.lua");
    let units = include_str!("../../../src/redis/lua/units.lua");
    let script = redis::Script::new(&source.replace("--@certificate\n", check).replace("--@units\n", units));
    let keys = stage.system.keys();
    let mut call = script.key(keys.certificate());
    call.key(stage.coupon_key()).key(stage.free_key());
    call.arg(stage.system.partition().credential(&keys)).arg(token).arg(next).arg(9);
    let answer: redis::RedisResult<Vec<String>> =
        call.invoke_async(&mut stage.system.partition().connection()).await;
    answer.expect("an answer").remove(1)
}

#[tokio::test]
async fn a_repair_that_slept_is_turned_away_by_the_one_that_began_after_it() {
    let stage = AuditStage::start().await;
    stage.change("SREM", &[stage.free_key().as_bytes(), b"9"]).await;
    let _: i64 = stage.redis("HSET", (stage.coupon_key(), "audit", "second")).await;
    assert_eq!(release(&stage, "first", "x").await, "superseded");
    assert_eq!(release(&stage, "second", "third").await, "released");
    // The answer was lost, and another user has the unit by now.
    let Some(taken): Option<String> = stage.redis("SPOP", stage.free_key()).await else {
        panic!("none is free")
    };
    assert_eq!(taken, "9");
    assert_eq!(release(&stage, "second", "third").await, "superseded");
}

#[tokio::test]
async fn something_in_the_free_set_that_is_no_unit_is_taken_out() {
    let stage = AuditStage::start().await;
    for member in ["99", "0", "07", "nine", "12"] {
        stage.change("SADD", &[stage.free_key().as_bytes(), member.as_bytes()]).await;
        let serial = member.parse().ok().map(Unit::serial);
        let found = stage.finds(FindingKind::FreeUnknown, serial, &[]).await;
        assert_eq!(found.detail.as_deref(), Some(member));
        let report = stage.repaired().await;
        assert_eq!(report.findings().count(), 0);
    }
    stage.system.audited_clean().await;
}

#[tokio::test]
async fn a_decision_that_redis_was_not_told_of_is_settled_by_the_audit() {
    let stage = AuditStage::start().await;
    let decided = stage.system.decider().decide(&stage.system.keys(), &stage.queued[..1]).await;
    decided.expect("it is decided");
    let found = stage.finds(FindingKind::DecidedInFlight, Some(7), &[stage.queued[0].id]).await;
    assert!(!found.is_damage());
    let coupon = stage.system.backends.coupons.get(&stage.coupon).await.expect("a read").expect("a coupon");
    let settle = coupon_system::audit::SettleMode::Settle;
    let report = stage.system.auditor().full(&[coupon], settle, |_| {}).await.expect("an audit");
    assert_eq!((report.coupons[0].settled, report.worst()), (1, None));
    assert!(!stage.system.is_in_flight(stage.queued[0].id).await);
    stage.system.audited_clean().await;
}

#[tokio::test]
async fn an_in_flight_value_that_was_lost_is_put_back_from_its_entry() {
    let stage = AuditStage::start().await;
    let id = stage.queued[0].id;
    stage.change("HDEL", &[stage.system.keys().in_flight().as_bytes(), id.as_bytes()]).await;
    stage.finds(FindingKind::InFlightLost, Some(7), &[id]).await;
    stage.is_mended().await;
    let held = stage.system.backends.ledger.holder_of(&stage.coupon, native(7)).await.expect("a read");
    assert_eq!(held.map(|held| held.expect("it is readable").id), Some(id), "its unit stayed its own");
}

#[tokio::test]
async fn an_in_flight_value_that_was_lost_and_whose_unit_is_somebody_elses_is_put_back_without_one() {
    let stage = AuditStage::start().await;
    let id = stage.queued[0].id;
    stage.change("HDEL", &[stage.system.keys().in_flight().as_bytes(), id.as_bytes()]).await;
    stage.late("late", 7, 1).await;
    let report = stage.system.audited().await;
    let found: Vec<_> = report.findings().map(|found| (found.kind, found.unit.map(Unit::serial))).collect();
    assert_eq!(found, [(FindingKind::RecordNotCounted, Some(7)), (FindingKind::InFlightLost, Some(7))]);
    stage.is_mended().await;
}

#[tokio::test]
async fn an_orphaned_entry_of_an_issued_one_is_deleted_and_counted() {
    let stage = AuditStage::start().await;
    let id = stage.queued[0].id;
    let decided = stage.system.decider().decide(&stage.system.keys(), &stage.queued[..1]).await;
    decided.expect("it is decided");
    stage.change("HDEL", &[stage.system.keys().in_flight().as_bytes(), id.as_bytes()]).await;
    stage.finds(FindingKind::EntryOrphaned, Some(7), &[id]).await;
    // The repair cannot correct the count while something is in flight; only that finding remains.
    let report = stage.repaired().await;
    assert_eq!(report.findings().map(|found| found.kind).collect::<Vec<_>>(), [FindingKind::CountDrifted]);
    stage.system.decider().process(&stage.system.keys(), &stage.queued[1..]).await.expect("settled");
    stage.is_mended().await;
    assert_eq!(stage.system.stock(&stage.coupon).await.issued, 8);
}

#[tokio::test]
async fn an_orphaned_entry_of_a_rejected_one_is_deleted_and_its_unit_given_back_once() {
    let mut stage = AuditStage::start().await;
    let lost = stage.queued.remove(0);
    let rejected = Outcome::Rejected { reason: Reason::Discarded, unit: Some(native(7)), lost: false };
    stage.insert(lost.id, "u6", rejected).await;
    stage.change("HDEL", &[stage.system.keys().in_flight().as_bytes(), lost.id.as_bytes()]).await;
    let report = stage.system.audited().await;
    let mut found: Vec<_> = report.findings().map(|found| found.kind).collect();
    found.sort_unstable();
    assert_eq!(found, [FindingKind::SerialLeaked, FindingKind::RejectionCounted, FindingKind::EntryOrphaned]);
    stage.is_mended().await;
    assert_eq!(stage.system.stock(&stage.coupon).await.remaining, 13);
}

#[tokio::test]
async fn a_rejection_that_is_counted_for_its_user_is_not_any_more() {
    let stage = AuditStage::start().await;
    let id = IssuanceId::generate(PartitionId::ONE);
    stage.insert(id, "u9", Outcome::Rejected { reason: Reason::SoldOut, unit: None, lost: true }).await;
    stage.change("HSET", &[stage.holders_key().as_bytes(), b"u9", id.as_bytes()]).await;
    stage.finds(FindingKind::RejectionCounted, None, &[id]).await;
    stage.is_mended().await;
    let held: Option<Vec<u8>> = stage.redis("HGET", (stage.holders_key(), "u9")).await;
    assert_eq!(held, None);
}

#[tokio::test]
async fn a_count_that_drifted_is_set_right_once_nothing_is_in_flight() {
    let stage = AuditStage::start().await;
    let _: i64 = stage.redis("HINCRBY", (stage.coupon_key(), "settled", -2)).await;
    let found = stage.finds(FindingKind::CountDrifted, None, &[]).await;
    assert_eq!(found.detail.as_deref(), Some("4 settled, 6 issued"));
    stage.stays(FindingKind::CountDrifted).await;
    stage.system.decider().process(&stage.system.keys(), &stage.queued).await.expect("settled");
    stage.is_mended().await;
    assert_eq!(stage.system.stock(&stage.coupon).await.issued, 8);
}
