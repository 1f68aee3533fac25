//! Who comes first: callers who wait at the door before what is safely queued, and both before work in the background.

use std::time::Duration;

use coupon_system::config::Concurrency;
use coupon_system::ids::{CouponId, PartitionId};
use coupon_system::redis::keys::pressure;
use tokio_util::sync::CancellationToken;

use crate::helpers::{System, accounts_hold};

/// Queues issuances of a new coupon.
async fn queue(system: &System, count: u32) -> CouponId {
    let coupon = system.coupon("c", count, 1).await;
    system.accept_all(&coupon, (0..count).map(|number| format!("u{number}"))).await;
    coupon
}

#[tokio::test]
async fn a_worker_drains_however_long_callers_wait() {
    const QUEUED: u32 = 3_000;
    let system = System::start().await;
    let coupon = queue(&system, QUEUED).await;
    system.command::<()>(&["SET", &pressure(PartitionId::ONE), "1", "PX", "600000"]).await;
    system.worker_with(Concurrency { batches: 4, batch_size: 100 });
    assert_eq!(system.settled(&coupon).await.issued, QUEUED);
    accounts_hold(&system, &coupon).await;
}

#[tokio::test]
async fn however_much_is_in_flight_an_audit_takes_a_small_share_of_the_time() {
    const TIME: Duration = Duration::from_secs(3);
    let system = System::start().await;
    queue(&system, 40_000).await;
    let stop = CancellationToken::new();
    let scans = async || system.commands_run().await.get("hscan").copied().unwrap_or(0);
    let before = scans().await;
    let auditing = system.keep_auditing(Duration::from_millis(1), &stop);
    tokio::time::sleep(TIME).await;
    stop.cancel();
    auditing.await.expect("it ends");
    let scanned = scans().await - before;
    assert!(scanned > 0, "it does read what is in flight");
    // On an idle machine 40 are read, and 140 without the bound; on a busy one fewer.
    assert!(scanned < 80, "{scanned} pages in {TIME:?}");
    system.leaves_in_flight();
}
