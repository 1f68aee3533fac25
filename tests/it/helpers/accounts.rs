//! The accounts, compared when a test is over.

use coupon_system::audit::SettleMode;
use coupon_system::coupon::Stock;
use coupon_system::ids::CouponId;
use coupon_system::queue::dead;
use coupon_system::recovery::is_certified;

use super::{System, eventually};

/// Waits until the partition is certified.
pub async fn recovered(system: &System) {
    eventually("the partition is certified again", async || {
        matches!(is_certified(system.partition()).await, Ok(true)).then_some(())
    })
    .await;
}

/// Audits a coupon in full as the background task does: settles what is decided, and adopts late inserts. Returns the
/// number of adopted ones.
pub async fn adopted(system: &System, coupon: &CouponId) -> u64 {
    let auditor = system.auditor();
    let record = system.backends.coupons.get(coupon).await.expect("a look").expect("its record");
    let report = auditor.full(&[record], SettleMode::Settle, |_| {}).await.expect("an audit");
    auditor.adopt(coupon, &report.coupons[0].findings).await.expect("an answer")
}

/// Waits until nothing is in flight, then compares Redis's account of the coupon with the ledger's, unit by unit, in two
/// ways: with plain sets, and with the audit.
pub async fn accounts_hold(system: &System, coupon: &CouponId) -> Stock {
    recovered(system).await;
    eventually("nothing is in flight", async || (system.queue().await == (0, 0)).then_some(())).await;
    let (keys, stock) = (system.keys(), system.stock(coupon).await);
    let issued = system.issued_serials(coupon).await;
    assert!(issued.is_sorted_by(|a, b| a < b), "a unit was issued twice: {issued:?}");
    assert!(issued.last().is_none_or(|last| *last <= stock.total), "oversold: {issued:?}");
    let in_flight: u64 = system.command(&["HLEN", &keys.in_flight()]).await;
    assert_eq!(in_flight, 0, "the stream is empty");
    assert_eq!((stock.reserved, stock.issued as usize), (0, issued.len()), "Redis and the ledger: {stock:?}");

    let next: u32 = system.command(&["HGET", &keys.coupon(coupon), "next"]).await;
    let mut taken: Vec<u32> = system.command(&["SMEMBERS", &keys.free(coupon)]).await;
    taken.extend(issued);
    taken.sort_unstable();
    assert_eq!(taken, (1..next).collect::<Vec<_>>(), "each unit below the next is free or issued");
    let (letters, _) = dead::scan(system.partition(), 0, 10).await.expect("a look");
    assert_eq!(letters, []);
    system.audited_clean().await;
    stock
}
