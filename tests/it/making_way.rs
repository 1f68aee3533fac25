//! Who comes first: callers who wait at the door before what is safely queued, and both before work in the background.

use std::time::Duration;

use coupon_system::config::Concurrency;
use coupon_system::ids::{CouponId, PartitionId};
use coupon_system::metrics::names;
use coupon_system::redis::keys::pressure;
use tokio_util::sync::CancellationToken;

use crate::helpers::{Client, System, WORKER, accounts_hold, program, serving};

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
    let _pressed = system.keep_pressing();
    system.worker_with(Concurrency { batches: 4, batch_size: 100 });
    assert_eq!(system.settled(&coupon).await.issued, QUEUED);
    accounts_hold(&system, &coupon).await;
}

#[tokio::test]
async fn what_was_said_before_the_clock_of_redis_was_set_back_makes_no_worker_rest() {
    const QUEUED: u32 = 3_000;
    let system = System::start().await;
    let coupon = queue(&system, QUEUED).await;
    // Only a clock that was set back leaves a key that is valid for so long.
    system.command::<()>(&["SET", &pressure(PartitionId::ONE), "1", "PX", "3600000"]).await;
    let mut worker = program(WORKER, &system);
    worker.args(["--metrics-listen", "127.0.0.1:0", "--batch", "100"]);
    let (_worker, address) = serving(worker).await;
    assert_eq!(system.settled(&coupon).await.issued, QUEUED);
    let scrape = Client::new(address).request("GET", "/metrics").send().await.expect("an answer");
    let scrape = scrape.text().await.expect("a text");
    let rests = scrape.lines().find_map(|line| line.strip_prefix(names::RESTS)?.trim().parse::<u64>().ok());
    assert_eq!(rests, Some(0));
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
