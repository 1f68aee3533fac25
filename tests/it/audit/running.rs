//! No false alarm while the system works; and the late insert that a recovery leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use coupon_system::audit::{FindingKind, SettleMode};
use coupon_system::issuance::reserve::Reserved;
use coupon_system::issuance::{Outcome, Reason};
use coupon_system::recovery;

use crate::helpers::{System, at, decided, eventually, issued_to};

const REQUESTS: usize = 6_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audits_among_thousands_of_requests_and_rejections_never_give_a_false_alarm() {
    let system = Arc::new(System::start().await);
    let coupon = system.coupon("busy", 3_000, 2).await;
    let worker = system.worker();
    let done = Arc::new(AtomicBool::new(false));
    let accepted = Arc::new(AtomicUsize::new(0));
    let requests = (0..4).map(|part| {
        let (system, coupon, accepted) = (Arc::clone(&system), coupon.clone(), Arc::clone(&accepted));
        tokio::spawn(async move {
            for number in 0..REQUESTS / 4 {
                let reserved = system.reserve(&format!("u{part}-{number}"), &coupon).await;
                let Reserved::Accepted(queued) = reserved else { continue };
                accepted.fetch_add(1, Ordering::Relaxed);
                // Every fifth is rejected before a worker decides it, so that its unit is reserved again.
                if number % 5 == 0 {
                    let discarded = Outcome::Rejected { reason: Reason::Discarded, unit: None, lost: false };
                    let decision = decided(queued.id, &coupon, &format!("u{part}-{number}"), discarded);
                    // The worker may have decided it first.
                    system.backends.ledger.insert(&[decision]).await.expect("an answer");
                }
            }
        })
    });
    let requests = futures::future::join_all(requests);
    let auditing = {
        let (system, done) = (Arc::clone(&system), Arc::clone(&done));
        tokio::spawn(async move {
            let mut audits = 0;
            while !done.load(Ordering::Relaxed) {
                let id = "busy".parse().expect("an id");
                let bracket = system.auditor().bracket(&id).await.expect("a bracket").expect("it is loaded");
                assert!(bracket.holds(), "{bracket:?}");
                let record = system.backends.coupons.get(&id).await.expect("a read").expect("a record");
                let auditor = system.auditor();
                let report = auditor.full(&[record], SettleMode::Settle, |_| {}).await.expect("an audit");
                let damage: Vec<_> = report.findings().filter(|found| found.is_damage()).collect();
                assert!(damage.is_empty(), "after {audits} audits: {damage:#?}");
                audits += 1;
            }
            audits
        })
    };
    for request in requests.await {
        request.expect("no panic");
    }
    system.settled(&coupon).await;
    let rejected = system.backends.ledger.rejected_page(&coupon, None).await.expect("a page");
    assert!(rejected.len() > 50, "only {} were rejected", rejected.len());
    done.store(true, Ordering::Relaxed);
    assert!(auditing.await.expect("no false alarm") > 3);
    assert!(accepted.load(Ordering::Relaxed) >= 3_000);
    worker.cancel();
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repairs_among_requests_give_leaked_units_back_and_every_unit_is_issued_once() {
    const TOTAL: u32 = 600;
    const LEAKED: u32 = 40;
    let system = Arc::new(System::start().await);
    let coupon = system.coupon("c", TOTAL, 1).await;
    // Units 1 to 40 were never reserved, and the counter is beyond them.
    let skipped: redis::RedisResult<i64> = redis::cmd("HINCRBY")
        .arg(system.keys().coupon(&coupon))
        .arg("next")
        .arg(LEAKED)
        .query_async(&mut system.partition().connection())
        .await;
    skipped.expect("they are skipped");
    system.worker();
    let requests = (0..4).map(|part| {
        let (system, coupon) = (Arc::clone(&system), coupon.clone());
        tokio::spawn(async move {
            let mut accepted = 0;
            for number in 0.. {
                match system.reserve(&format!("u{part}-{number}"), &coupon).await {
                    Reserved::Accepted(_) => accepted += 1,
                    // Sold out: the leaked units return, or have returned.
                    _ if system.stock(&coupon).await.issued == TOTAL => return accepted,
                    _ => {}
                }
            }
            accepted
        })
    });
    let requests = futures::future::join_all(requests);
    let repairs = (0..2).map(|_| {
        let (system, coupon) = (Arc::clone(&system), coupon.clone());
        tokio::spawn(async move {
            let record = system.backends.coupons.get(&coupon).await.expect("a read").expect("a record");
            system.auditor().repair(&[record], |_| {}).await.expect("a repair").repaired.len() as u32
        })
    });
    let repairs = futures::future::join_all(repairs);
    let (requests, repairs) = futures::future::join(requests, repairs).await;
    let accepted: u32 = requests.into_iter().map(|accepted| accepted.expect("no panic")).sum();
    let repaired: u32 = repairs.into_iter().map(|repaired| repaired.expect("no panic")).sum();
    assert_eq!((accepted, repaired), (TOTAL, LEAKED));
    assert_eq!(system.issued_serials(&coupon).await, (1..=TOTAL).collect::<Vec<_>>());
    system.audited_clean().await;
}

#[tokio::test]
async fn a_late_insert_after_a_loss_is_adopted_and_its_user_and_its_unit_are_counted() {
    let system = System::start().await;
    system.users("u", 2).await;
    let coupon = system.coupon("c", 3, 1).await;
    let id = system.accepted("u0", &coupon).await;
    let (old_keys, entries) = (system.keys(), system.take_entries().await);
    let flushed: redis::RedisResult<()> =
        redis::cmd("FLUSHALL").query_async(&mut system.partition().connection()).await;
    flushed.expect("it is flushed");
    eventually("it is rebuilt", async || {
        matches!(recovery::is_certified(system.partition()).await, Ok(true)).then_some(())
    })
    .await;
    assert_eq!(system.stock(&coupon).await.remaining, 3, "it is loaded again");
    system.audited_clean().await;
    // The worker that had the entry in hand wakes.
    system.decider().process(&old_keys, &entries).await.expect("it decides, and settles nothing");
    assert!(!system.auditor().bracket(&coupon).await.expect("a bracket").expect("it is loaded").holds());

    let report = system.audited().await;
    let findings: Vec<_> = report.findings().cloned().collect();
    assert_eq!(findings.iter().map(|found| found.kind).collect::<Vec<_>>(), [FindingKind::RecordNotCounted]);
    assert_eq!(findings[0].issuances, [id]);
    assert_eq!(system.auditor().adopt(&coupon, &findings).await.expect("an answer"), 1);
    system.audited_clean().await;
    let again = system.client.issue("u0", "c", None).await;
    assert_eq!((again.status, again.code()), (409, "already-issued"));
    assert_eq!(system.stock(&coupon).await.remaining, 2);
}

#[tokio::test]
async fn a_late_insert_is_adopted_by_the_api_itself_and_nothing_else_is_mended_by_itself() {
    let system = System::builder().flags(&["--audit-every", "1"]).start().await;
    let coupon = system.coupon("c", 9, 1).await;
    let other = system.coupon("other", 9, 1).await;
    let drifted: redis::RedisResult<i64> = redis::cmd("HINCRBY")
        .arg(system.keys().coupon(&other))
        .arg(&["settled", "2"])
        .query_async(&mut system.partition().connection())
        .await;
    drifted.expect("it is changed");
    system.write(&[issued_to(&coupon, "late", 4)]).await;
    eventually("it is adopted", async || (system.stock(&coupon).await.issued == 1).then_some(())).await;
    let report = system.audited().await;
    let left: Vec<_> = report.findings().map(|found| (found.kind, found.coupon.clone())).collect();
    assert_eq!(left, [(FindingKind::CountDrifted, Some(other))]);
    assert_eq!(system.stock(&coupon).await.remaining, 8);
}

#[tokio::test]
async fn an_audit_without_a_certificate_fails_and_says_so() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3, 1).await;
    let leases = system.backends.database.collection::<mongodb::bson::Document>("recovery");
    let until = mongodb::bson::DateTime::from_millis(at(14).as_millisecond());
    let held = mongodb::bson::doc! {"$set": {"holder": "slow", "until": until}};
    leases.update_one(mongodb::bson::doc! {}, held).await.expect("it is held");
    let certificate = coupon_system::redis::keys::certificate(system.partition().id());
    let closed: redis::RedisResult<i64> = redis::cmd("HSET")
        .arg(certificate)
        .arg(&["state", "closed"])
        .query_async(&mut system.partition().connection())
        .await;
    closed.expect("it is closed");
    let refused = system.auditor().bracket(&coupon).await;
    assert!(matches!(refused, Err(coupon_system::Failure::Uncertified)), "{refused:?}");
}
