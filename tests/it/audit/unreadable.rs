//! A value that cannot be read does not end an audit: it is a finding, and the audit covers everything else.

use coupon_system::ids::Unit;
use std::time::Duration;

use coupon_system::audit::{AuditReport, FindingKind};
use coupon_system::coupon::{CouponChange, Restock, RestockAmount};
use coupon_system::metrics::names;
use coupon_system::service::ServiceStore;
use mongodb::bson::{Document, doc};
use tokio_util::sync::CancellationToken;

use super::AuditStage;
use crate::helpers::{System, eventually};

fn kinds(report: &AuditReport) -> Vec<&'static str> {
    let mut kinds: Vec<_> = report.findings().map(|finding| finding.kind.code()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

async fn coupons(system: &System) -> Vec<coupon_system::coupon::Coupon> {
    system.auditor().coupons_after(None).await.expect("the coupons")
}

async fn bracketed(system: &System) -> AuditReport {
    system.auditor().brackets(&coupons(system).await, |_| {}).await.expect("an audit")
}

fn records(system: &System) -> mongodb::Collection<Document> {
    system.backends.database.collection("coupons")
}

#[tokio::test]
async fn a_coupon_whose_record_was_deleted_while_redis_has_it_is_named() {
    let stage = AuditStage::start().await;
    let system = &stage.system;
    system.coupon("other", 5, 1).await;
    records(system).delete_one(doc! {"_id": "c"}).await.expect("it is deleted");
    for report in [system.audited().await, bracketed(system).await] {
        let findings: Vec<_> = report.findings().collect();
        let [finding] = &findings[..] else { panic!("{findings:#?}") };
        assert_eq!(finding.kind, FindingKind::CouponRecordMissing);
        assert_eq!(finding.coupon.as_ref(), Some(&stage.coupon));
        assert_eq!(report.coupons.len(), 1, "the other is audited");
    }
}

#[tokio::test]
async fn a_coupon_whose_record_cannot_be_read_is_named_and_hides_no_other() {
    let stage = AuditStage::start().await;
    let system = &stage.system;
    for number in 0..30 {
        system.coupon(&format!("bad{number}"), 5, 1).await;
    }
    system.coupon("last", 5, 1).await;
    let of_later = doc! {"$set": {"discount": {"type": "of-a-later-version"}}};
    records(system).update_many(doc! {"_id": {"$regex": "^bad"}}, of_later).await.expect("they are changed");
    for report in [system.audited().await, bracketed(system).await] {
        assert_eq!(kinds(&report), ["coupon-record-unreadable"]);
        assert_eq!((report.findings().count(), report.coupons.len()), (30, 2));
    }
    // Lists leave it out, and their pages stay full.
    let listed = system.client.get("/coupons?limit=2").await;
    let items = listed.body["items"].as_array().expect("a list").iter();
    let ids: Vec<_> = items.map(|one| one["id"].as_str().expect("an id")).collect();
    assert_eq!((listed.status, ids), (200, vec!["last", "c"]));
    let listed = system.client.get("/coupons?limit=1").await;
    let cursor = listed.body["nextCursor"].as_str().expect("there are more");
    let listed = system.client.get(&format!("/coupons?limit=1&cursor={cursor}")).await;
    assert_eq!(listed.body["items"][0]["id"], "c");
}

#[tokio::test]
async fn a_coupon_that_cannot_be_read_in_redis_is_named_and_the_others_are_audited() {
    let stage = AuditStage::start().await;
    let system = &stage.system;
    system.coupon("other", 5, 1).await;
    for field in ["total", "next", "settled", "generation", "id"] {
        let was: String = system.command(&["HGET", &stage.coupon_key(), field]).await;
        for wrong in ["x", "", "-1", "nan"] {
            if field == "id" && wrong != "x" {
                system.command::<()>(&["HDEL", &stage.coupon_key(), field]).await;
            } else {
                system.command::<()>(&["HSET", &stage.coupon_key(), field, wrong]).await;
            }
            if field == "id" && wrong == "x" {
                continue;
            }
            for report in [system.audited().await, bracketed(system).await, stage.repaired().await] {
                assert_eq!(kinds(&report), ["coupon-unreadable"], "{field} {wrong:?}");
            }
            assert_eq!(system.audited().await.coupons.len(), 2);
        }
        system.command::<()>(&["HSET", &stage.coupon_key(), field, &was]).await;
    }
    system.audited_clean().await;
    for key in [stage.holders_key(), stage.free_key(), stage.coupon_key()] {
        let kept: Vec<u8> = system.command(&["DUMP", &key]).await;
        system.command::<()>(&["SET", &key, "of another type"]).await;
        let report = system.audited().await;
        assert_eq!(kinds(&report), ["coupon-unreadable"], "{key}");
        assert_eq!(report.coupons.len(), 2);
        let mut restore = redis::cmd("RESTORE");
        restore.arg(&key).arg(0).arg(kept.as_slice()).arg("REPLACE");
        restore.query_async::<()>(&mut system.partition().connection()).await.expect("it is back");
    }
    system.audited_clean().await;
}

#[tokio::test]
async fn records_of_the_ledger_that_cannot_be_read_are_named_and_nobodys_unit_is_given_away_for_them() {
    let stage = AuditStage::start().await;
    let ledger = stage.system.backends.database.collection::<Document>("user_coupons");
    let set = async |serial: i64, change: Document| {
        let changed = ledger.update_one(doc! {"serial": serial}, doc! {"$set": change}).await;
        assert_eq!(changed.expect("an answer").modified_count, 1);
    };
    set(2, doc! {"nth": "one"}).await;
    set(9, doc! {"reason": "of-a-later-version"}).await;
    for report in [stage.system.audited().await, stage.repaired().await] {
        assert_eq!(kinds(&report), ["record-unreadable"]);
        let mut serials: Vec<_> = report.findings().map(|finding| finding.unit.map(Unit::serial)).collect();
        serials.sort_unstable();
        assert_eq!(serials, [None, Some(2)]);
    }
    // While a record does not even name its unit, the repair gives no missing unit back.
    set(4, doc! {"serial": "four", "unit": "four"}).await;
    for report in [stage.system.audited().await, stage.repaired().await] {
        assert_eq!(kinds(&report), ["record-unreadable"]);
    }
    assert_eq!(stage.system.stock(&stage.coupon).await.remaining, 12);
}

#[tokio::test]
async fn a_change_that_redis_missed_is_found_and_mended() {
    let mut stage = AuditStage::start().await;
    // No API runs that would write it to Redis.
    stage.system.stop().await;
    let system = &stage.system;
    let before = mongodb::bson::DateTime::from_millis(0);
    for change in [
        CouponChange::Pause,
        CouponChange::Restock(Restock { units: RestockAmount::Add(5), key: None }),
        CouponChange::Archive,
    ] {
        system.backends.coupons.change(&stage.coupon, &change, None).await.expect("it is changed");
        // A process with a slow clock wrote it, so that a search for recent changes does not find it.
        records(system)
            .update_one(doc! {"_id": "c"}, doc! {"$set": {"changedAt": before}})
            .await
            .expect("it is");
        for report in [system.audited().await, bracketed(system).await] {
            assert_eq!(kinds(&report), ["coupon-behind"], "{change:?}");
        }
        let report = stage.repaired().await;
        let repaired: Vec<_> = report.repaired.iter().map(|finding| finding.kind).collect();
        assert_eq!((report.findings().count(), repaired), (0, vec![FindingKind::CouponBehind]), "{change:?}");
    }
    let kept: (String, String, String) =
        system.command(&["HMGET", &stage.coupon_key(), "paused", "total", "archived"]).await;
    assert_eq!(kept, ("1".into(), "25".into(), "1".into()));

    ServiceStore::new(&system.backends.database).set_paused(true).await.expect("paused");
    assert_eq!(kinds(&system.audited().await), ["service-behind"]);
    assert_eq!(kinds(&bracketed(system).await), ["service-behind"]);
    let report = stage.repaired().await;
    assert_eq!((report.findings().count(), report.repaired.len()), (0, 1));
    let paused: String = system.command(&["HGET", &system.keys().counters(), "paused"]).await;
    assert_eq!(paused, "1");
}

#[tokio::test]
async fn the_task_that_audits_all_the_time_mends_what_redis_missed_and_names_what_cannot_be_read() {
    let mut system = System::start().await;
    let (coupon, gone) = (system.coupon("c", 5, 1).await, system.coupon("gone", 5, 1).await);
    system.stop().await;
    records(&system).delete_one(doc! {"_id": gone.as_str()}).await.expect("it is deleted");
    system.backends.coupons.change(&coupon, &CouponChange::Pause, None).await.expect("it is changed");
    ServiceStore::new(&system.backends.database).set_paused(true).await.expect("paused");
    system.command::<()>(&["SADD", &system.keys().loaded(), "no id"]).await;
    // A process took the turn before the clock was set back by an hour.
    system.command::<()>(&["SET", &system.keys().audit_turn(), "x", "PX", "3600000"]).await;
    // A full Redis does not stop the audit.
    system.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let stop = CancellationToken::new();
    let watching = system.keep_auditing(Duration::from_millis(300), &stop);
    eventually("Redis has both changes", async || {
        let of_coupon: String = system.command(&["HGET", &system.keys().coupon(&coupon), "paused"]).await;
        let of_service: String = system.command(&["HGET", &system.keys().counters(), "paused"]).await;
        (of_coupon == "1" && of_service == "1").then_some(())
    })
    .await;
    let found = |code: &str| format!("{}{{finding=\"{code}\"}}", names::AUDIT_FINDINGS);
    eventually("they are counted", async || {
        let text = coupon_system::metrics::render();
        let told = |code| text.lines().any(|line| line.starts_with(&found(code)) && !line.ends_with(" 0"));
        let all = ["coupon-behind", "service-behind", "coupon-record-missing", "coupon-unreadable"];
        all.into_iter().all(told).then_some(())
    })
    .await;
    stop.cancel();
    watching.await.expect("it ends");
}
