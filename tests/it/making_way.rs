//! Who comes first: callers who wait at the door before what is safely queued, and both before work in the background.

use std::time::Duration;

use coupon_system::config::Concurrency;
use coupon_system::ids::PartitionId;
use coupon_system::redis::keys::pressure;
use tokio_util::sync::CancellationToken;

use crate::helpers::{System, accounts_hold};

const QUEUED: u32 = 3_000;

async fn queue(system: &System, name: &str) -> coupon_system::ids::CouponId {
    let coupon = system.coupon(name, QUEUED, 1).await;
    system.accept_all(&coupon, (0..QUEUED).map(|number| format!("{name}{number}"))).await;
    coupon
}

#[tokio::test]
async fn a_worker_drains_however_long_callers_wait() {
    let system = System::start().await;
    let coupon = queue(&system, "c").await;
    system.command::<()>(&["SET", &pressure(PartitionId::ONE), "1", "PX", "600000"]).await;
    system.worker_with(Concurrency { batches: 4, batch_size: 100 });
    assert_eq!(system.settled(&coupon).await.issued, QUEUED);
    accounts_hold(&system, &coupon).await;
}

#[tokio::test]
async fn however_much_is_in_flight_an_audit_takes_a_small_share_of_the_time() {
    const TIME: Duration = Duration::from_secs(3);
    let system = System::start().await;
    let coupon = queue(&system, "c").await;
    let stop = CancellationToken::new();
    let scans = async || system.commands_run().await.get("hscan").copied().unwrap_or(0);
    let before = scans().await;
    let auditing = system.keep_auditing(Duration::from_millis(1), &stop);
    tokio::time::sleep(TIME).await;
    stop.cancel();
    auditing.await.expect("it ends");
    let scanned = scans().await - before;
    assert!(scanned > 0, "it does read what is in flight");
    // Each call of the audit is charged a tenth of a millisecond at least, and 2 % of three seconds are 60 ms, after
    // 200 ms at one go. Without a bound it makes some thousand calls.
    assert!(scanned < 400, "{scanned} pages in {TIME:?}");
    system.leaves_in_flight();
    drop(coupon);
}
