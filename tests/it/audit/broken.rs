//! Broken promises: the audit finds and names them, and leaves them to a person.

use coupon_system::audit::{FindingKind, Severity};
use coupon_system::ids::{IssuanceId, PartitionId, Unit};
use coupon_system::issuance::Outcome;
use coupon_system::issuance::ledger::migration::{MigrationOutcome, OlderPrograms, migrate};
use coupon_system::redis::keys::damaged;
use mongodb::bson::{Document, Uuid, doc};

use super::AuditStage;
use crate::helpers::{at, native};

fn uuid(id: IssuanceId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

impl AuditStage {
    fn records(&self) -> mongodb::Collection<Document> {
        self.system.backends.database.collection("user_coupons")
    }

    async fn drop_index(&self, name: &str) {
        self.records().drop_index(name).await.expect("it is dropped");
    }

    async fn delete_record(&self, id: IssuanceId) {
        let deleted = self.records().delete_one(doc! {"_id": uuid(id)}).await.expect("it is deleted");
        assert_eq!(deleted.deleted_count, 1);
    }
}

#[tokio::test]
async fn a_deleted_record_is_found_with_its_unit_which_is_not_given_away() {
    let stage = AuditStage::start().await;
    stage.delete_record(stage.issued[3]).await;
    let found = stage.finds(FindingKind::RecordMissing, Some(4), &[stage.issued[3]]).await;
    assert_eq!(found.user.as_ref().map(|user| user.as_str()), Some("u3"));
    assert_eq!(found.kind.severity(), Severity::Broken);
    stage.stays(FindingKind::RecordMissing).await;
    assert_eq!(stage.system.stock(&stage.coupon).await.remaining, 12);
}

#[tokio::test]
async fn where_records_are_missing_no_leaked_unit_is_given_back() {
    let stage = AuditStage::start().await;
    stage.delete_record(stage.issued[3]).await;
    stage.change("SREM", &[stage.free_key().as_bytes(), b"9"]).await;
    for report in [stage.system.audited().await, stage.repaired().await] {
        let found: Vec<_> =
            report.findings().map(|found| (found.kind, found.unit.map(Unit::serial))).collect();
        assert_eq!(
            found,
            [
                (FindingKind::RecordMissing, None),
                (FindingKind::SerialLeaked, Some(4)),
                (FindingKind::SerialLeaked, Some(9))
            ]
        );
    }
}

#[tokio::test]
async fn records_in_another_partition_than_their_id_and_coupon_say_are_found() {
    let stage = AuditStage::start().await;
    let elsewhere = IssuanceId::generate(PartitionId::new(3).expect("a number"));
    stage.insert(elsewhere, "u9", Outcome::Issued { unit: native(12), nth: 1 }).await;
    stage.finds(FindingKind::Misrouted, Some(12), &[elsewhere]).await;
    // Nor may a record of the coupon's partition have the id of another.
    let here = doc! {"$set": {"p": 0}};
    stage.records().update_one(doc! {"_id": uuid(elsewhere)}, here).await.expect("it is changed");
    let report = stage.system.audited().await;
    let found: Vec<_> = report.findings().filter(|found| found.kind == FindingKind::Misrouted).collect();
    assert_eq!(found.iter().map(|found| found.unit.map(Unit::serial)).collect::<Vec<_>>(), [Some(12)]);
}

#[tokio::test]
async fn a_record_that_names_no_partition_is_found_and_the_migration_gives_it_one() {
    let stage = AuditStage::start().await;
    let open = doc! {"collMod": "user_coupons", "validator": {}};
    stage.system.backends.database.run_command(open).await.expect("whoever damages it goes past the fence");
    let damage = doc! {"$unset": {"p": "", "unit": ""}};
    stage.records().update_one(doc! {"_id": uuid(stage.issued[3])}, damage).await.expect("it is changed");
    let report = stage.system.audited().await;
    let found = report.findings().find(|found| found.kind == FindingKind::Misrouted).expect("it is found");
    assert_eq!(found.issuances, [stage.issued[3]]);
    let migrated = migrate(&stage.system.backends.database, OlderPrograms::Ignore, |_| {}).await;
    assert_eq!(migrated.expect("it is migrated"), MigrationOutcome::Now { records: 1 });
    stage.system.audited_clean().await;
}

#[tokio::test]
async fn a_unit_that_was_issued_twice_is_found_with_both_records() {
    let stage = AuditStage::start().await;
    stage.drop_index("unit_occupied_once").await;
    let second = stage.late("twin", 2, 1).await;
    stage.finds(FindingKind::UnitIssuedTwice, Some(2), &[stage.issued[1], second]).await;
    stage.stays(FindingKind::UnitIssuedTwice).await;
}

#[tokio::test]
async fn a_user_with_more_than_the_limit_is_found() {
    let stage = AuditStage::start().await;
    let ids = [stage.issued[0], stage.late("u0", 10, 2).await, stage.late("u0", 11, 3).await];
    let found = stage.finds(FindingKind::LimitExceeded, None, &ids).await;
    assert_eq!(found.user.as_ref().map(|user| user.as_str()), Some("u0"));
    stage.stays(FindingKind::LimitExceeded).await;
}

#[tokio::test]
async fn two_records_with_one_place_in_the_limit_are_found_without_the_index_too() {
    let stage = AuditStage::start().await;
    stage.drop_index("user_within_limit_by_partition").await;
    let second = stage.late("u0", 10, 1).await;
    stage.finds(FindingKind::LimitExceeded, None, &[stage.issued[0], second]).await;
}

#[tokio::test]
async fn a_unit_beyond_the_total_is_found() {
    let stage = AuditStage::start().await;
    let id = stage.late("late", 21, 1).await;
    stage.finds(FindingKind::SerialBeyondTotal, Some(21), &[id]).await;
    stage.stays(FindingKind::SerialBeyondTotal).await;
}

#[tokio::test]
async fn a_coupon_whose_record_went_back_in_time_is_found() {
    let stage = AuditStage::start().await;
    let _: i64 = stage.redis("HSET", (stage.coupon_key(), "total", 30)).await;
    let found = stage.finds(FindingKind::CouponAhead, None, &[]).await;
    assert!(found.detail.is_some_and(|detail| detail.contains("30 in Redis and 20")));
    stage.stays(FindingKind::CouponAhead).await;
}

#[tokio::test]
async fn an_in_flight_value_that_cannot_be_read_is_found() {
    let stage = AuditStage::start().await;
    let id = IssuanceId::generate(PartitionId::ONE);
    stage.change("HSET", &[stage.system.keys().in_flight().as_bytes(), id.as_bytes(), b"damaged"]).await;
    let found = stage.finds(FindingKind::InFlightUnreadable, None, &[id]).await;
    assert_eq!(found.detail.as_deref(), Some("\"damaged\""));
}

#[tokio::test]
async fn what_a_rebuild_set_aside_is_found() {
    let stage = AuditStage::start().await;
    stage.change("HSET", &[damaged(PartitionId::ONE).as_bytes(), b"id", b"value"]).await;
    stage.finds(FindingKind::InFlightSetAside, None, &[]).await;
}

#[tokio::test]
async fn a_stream_entry_that_cannot_be_read_is_found() {
    let stage = AuditStage::start().await;
    let entry: String = stage.redis("XADD", (stage.system.keys().stream(), "*", "v", "9")).await;
    let found = stage.finds(FindingKind::EntryUnreadable, None, &[]).await;
    assert_eq!(found.entry, Some(entry));
}

#[tokio::test]
async fn a_users_ids_that_cannot_be_read_are_found() {
    let stage = AuditStage::start().await;
    stage.change("HSET", &[stage.holders_key().as_bytes(), b"u9", b"short"]).await;
    let found = stage.finds(FindingKind::HoldersUnreadable, None, &[]).await;
    assert_eq!(found.user.as_ref().map(|user| user.as_str()), Some("u9"));
    stage.stays(FindingKind::HoldersUnreadable).await;
}

#[tokio::test]
async fn a_coupon_that_is_gone_from_redis_with_requests_in_flight_is_found() {
    let stage = AuditStage::start().await;
    stage.change("DEL", &[stage.coupon_key().as_bytes()]).await;
    let queued: Vec<_> = stage.queued.iter().map(|entry| entry.id).collect();
    stage.finds(FindingKind::InFlightNotLoaded, None, &queued).await;
}

#[tokio::test]
async fn of_a_coupon_that_is_not_loaded_the_ledger_is_audited() {
    let stage = AuditStage::start().await;
    stage.system.coupon_record("cold", 2, 1, at(-60), at(-30)).await;
    stage.system.audited_clean().await;
    let id = IssuanceId::generate(PartitionId::ONE);
    let record = doc! {
        "_id": Uuid::from_bytes(*id.as_bytes()), "p": 0, "outcome": "issued", "couponId": "cold", "userId": "u0",
        "serial": 3_i64, "unit": 3_i64, "nth": 1, "acceptedAt": mongodb::bson::DateTime::now(),
        "decidedAt": mongodb::bson::DateTime::now(),
    };
    stage.records().insert_one(record).await.expect("it is written");
    let found = stage.finds(FindingKind::SerialBeyondTotal, Some(3), &[id]).await;
    assert_eq!(found.coupon.map(|coupon| coupon.to_string()).as_deref(), Some("cold"));
}
